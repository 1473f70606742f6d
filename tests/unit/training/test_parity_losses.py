"""Loss modules against the reference's values (tests/data/golden)."""

import pytest
import torch
from torch import Tensor

from eosin.config.train import TrainConfig
from eosin.training.engine.objective import Objective
from eosin.training.engine.optimizer import CosineSchedule, Schedules
from eosin.training.losses.cross_entropy import (
    Prototypes,
    SinkhornProblem,
    dino_terms,
    ibot_sum,
    scores_of,
    sinkhorn_shifts,
)
from eosin.training.losses.uniformity import kde, koleo
from eosin.training.world import World
from tests.support.golden import VALUES, relative_error, tensors

GOLDEN = tensors("losses")
TEACHER_T, STUDENT_T = 0.06, 0.1


def of_logits(num_prototypes: int, temperature: float, shift: Tensor | None = None) -> Prototypes:
    """Logits stand for the features themselves: the prototypes are the unit vectors."""
    return Prototypes(torch.eye(num_prototypes), temperature, shift)


def teacher(kind: str, logits: Tensor, center: Tensor) -> Prototypes:
    plain = of_logits(logits.shape[1], TEACHER_T)
    shift = (
        sinkhorn_shifts([SinkhornProblem({0: logits}, plain)], World(1))[0]
        if kind == "sinkhorn"
        else -center / TEACHER_T
    )
    return of_logits(logits.shape[1], TEACHER_T, shift.flatten())


def probabilities_of(prototypes: Prototypes, features: Tensor) -> Tensor:
    return scores_of(features, prototypes.readout()).softmax(dim=-1)


@pytest.mark.parametrize(("kind", "name"), [("sinkhorn", "teacher_probs_sinkhorn"),
                                            ("softmax", "teacher_probs_softmax_center")])  # fmt: skip
def test_teacher_probabilities_of_class_tokens(kind: str, name: str) -> None:
    logits = GOLDEN["teacher_cls_logits"]
    assert (
        relative_error(probabilities_of(teacher(kind, logits, GOLDEN["center"]), logits), GOLDEN[name]) < 1e-5
    )


@pytest.mark.parametrize(
    ("kind", "name"),
    [("sinkhorn", "teacher_patch_probs_sinkhorn"), ("softmax", "teacher_patch_probs_softmax_zero_center")],
)
def test_teacher_probabilities_of_patches(kind: str, name: str) -> None:
    logits = GOLDEN["teacher_patch_logits"]
    ours = probabilities_of(teacher(kind, logits, torch.zeros(logits.shape[1])), logits)
    assert relative_error(ours, GOLDEN[name]) < 1e-5


def test_sinkhorn_split_over_microbatches_equals_the_whole() -> None:
    logits = GOLDEN["teacher_cls_logits"]
    plain = of_logits(logits.shape[1], TEACHER_T)
    split = {0: logits[:5], 1: logits[5:6], 2: logits[6:]}
    shift = sinkhorn_shifts([SinkhornProblem(split, plain)], World(3))[0]
    ours = probabilities_of(of_logits(logits.shape[1], TEACHER_T, shift), logits)
    assert relative_error(ours, GOLDEN["teacher_probs_sinkhorn"]) < 1e-5


def test_sinkhorn_stays_finite_where_exponentials_overflow() -> None:
    logits = torch.randn(16, 24, generator=torch.Generator().manual_seed(3)) * 60
    shift = sinkhorn_shifts([SinkhornProblem({0: logits}, of_logits(24, 0.04))], World(1))[0]
    probabilities = probabilities_of(of_logits(24, 0.04, shift), logits)
    assert probabilities.isfinite().all()
    assert torch.allclose(probabilities.sum(1), torch.ones(16))


@pytest.mark.parametrize(("kind", "key"), [("sinkhorn", "sinkhorn"), ("softmax", "softmax_center")])
def test_dino_terms(kind: str, key: str) -> None:
    logits = GOLDEN["teacher_cls_logits"]
    terms = dino_terms(
        GOLDEN["student_global_cls_logits"].unflatten(0, (2, 6)),
        GOLDEN["student_local_cls_logits"].unflatten(0, (3, 6)),
        logits.unflatten(0, (2, 6)),
        of_logits(96, STUDENT_T),
        teacher(kind, logits, GOLDEN["center"]),
    )
    assert float(terms[0] / 6) == pytest.approx(VALUES[f"dino_cls_sum_local_to_global[{key}]"], rel=1e-5)
    # The reference's raw value is a mean over 12 rows, ours a sum over them.
    assert float(terms[1] / 12) == pytest.approx(
        VALUES[f"dino_cls_sum_global_to_other_global[{key}]"], rel=1e-5
    )


def test_dino_v1_loss_and_its_temperature() -> None:
    logits = GOLDEN["teacher_cls_logits"]
    temperature = CosineSchedule(0.07, 0.07, 10, 10, 0.04)(4)
    assert temperature == pytest.approx(VALUES["dino_v1_teacher_temp[epoch=4]"], rel=1e-12)
    terms = dino_terms(
        GOLDEN["student_global_cls_logits"].unflatten(0, (2, 6)),
        GOLDEN["student_local_cls_logits"].unflatten(0, (3, 6)),
        logits.unflatten(0, (2, 6)),
        of_logits(96, STUDENT_T),
        of_logits(96, temperature, -GOLDEN["center"].flatten() / temperature),
    )
    assert float((terms[0] + terms[1]) / 6 / 8) == pytest.approx(VALUES["dino_v1_loss[epoch=4]"], rel=1e-5)


@pytest.mark.parametrize(("kind", "key"), [("sinkhorn", "sinkhorn"), ("softmax", "softmax_zero_center")])
def test_ibot_sum(kind: str, key: str) -> None:
    logits = GOLDEN["teacher_patch_logits"]
    total = ibot_sum(
        GOLDEN["student_patch_logits"], logits, GOLDEN["masks_weight"],
        of_logits(80, STUDENT_T), teacher(kind, logits, torch.zeros(80)),
    )  # fmt: skip
    assert float(total / 12) == pytest.approx(VALUES[f"ibot_masked[{key}]"], rel=1e-5)


def test_chunked_losses_and_their_gradients_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = GOLDEN["teacher_patch_logits"]

    def loss_and_gradient() -> tuple[Tensor, Tensor]:
        student = GOLDEN["student_patch_logits"].clone().requires_grad_()
        total = ibot_sum(student, logits, GOLDEN["masks_weight"], of_logits(80, STUDENT_T),
                         teacher("sinkhorn", logits, torch.zeros(80)))  # fmt: skip
        total.backward()
        assert student.grad is not None
        return total.detach(), student.grad

    whole = loss_and_gradient()
    monkeypatch.setattr("eosin.training.losses.cross_entropy.CHUNK_ELEMENTS", 80 * 3 * 7)
    chunked = loss_and_gradient()
    assert relative_error(chunked[0], whole[0]) < 1e-6
    assert relative_error(chunked[1], whole[1]) < 2e-6


@pytest.mark.parametrize("name", ["center_after_update", "dino_v1_center_after"])
@pytest.mark.parametrize("num_microbatches", [1, 2, 3])
def test_the_centre_moves_as_the_references_do(name: str, num_microbatches: int) -> None:
    logits, center = GOLDEN["teacher_cls_logits"], GOLDEN["center"].flatten().clone()
    train = TrainConfig(method="dino", batch_size=6, num_microbatches=num_microbatches)
    objective = Objective(train, World(num_microbatches))
    parts = dict(enumerate(logits.chunk(num_microbatches)))
    objective._move_center(center, of_logits(96, TEACHER_T), parts)
    assert relative_error(center, GOLDEN[name].flatten()) < 1e-6


def test_koleo_of_each_view() -> None:
    views = GOLDEN["koleo_features"].unflatten(0, (2, 6))
    assert float(koleo(views[0])) == pytest.approx(VALUES["koleo_first_view"], rel=1e-5)
    assert float(koleo(views[1])) == pytest.approx(VALUES["koleo_second_view"], rel=1e-5)


def test_minimising_kde_spreads_features() -> None:
    features = (torch.randn(12, 8, generator=torch.Generator().manual_seed(5)) + 2).requires_grad_()
    before = _mean_cosine(features)
    for _ in range(60):
        (gradient,) = torch.autograd.grad(kde(features, 5.0), features)
        features = (features - 2.0 * gradient).detach().requires_grad_()
    assert _mean_cosine(features) < before - 0.5


def _mean_cosine(features: Tensor) -> float:
    z = torch.nn.functional.normalize(features.detach(), dim=-1)
    cosine = z @ z.T
    return float((cosine.sum() - cosine.trace()) / (len(z) * (len(z) - 1)))


@pytest.mark.parametrize(
    ("key", "schedule"),
    [
        ("cosine(base=2e-3,final=1e-6,total=1000,warmup=80)", CosineSchedule(2e-3, 1e-6, 1000, 80)),
        ("cosine(base=0.04,final=0.4,total=1000)", CosineSchedule(0.04, 0.4, 1000)),
        ("cosine(base=0.992,final=1,total=1000)", CosineSchedule(0.992, 1.0, 1000)),
        (
            "teacher_temp linear as cosine(base=final=0.07,total=warmup=300,start=0.04)",
            CosineSchedule(0.07, 0.07, 300, 300, 0.04),
        ),
    ],
)
def test_schedule(key: str, schedule: CosineSchedule) -> None:
    for step, value in VALUES["schedules"][key].items():
        assert schedule(int(step)) == pytest.approx(value, rel=1e-9, abs=1e-15)


def test_last_layer_stands_still_at_first_and_the_rate_follows_the_root_of_the_batch() -> None:
    config = TrainConfig.model_validate(
        {"num_steps": 100, "batch_size": 256, "num_microbatches": 4,
         "optimizer": {"lr": 1e-3, "warmup_steps": 10, "freeze_last_layer_steps": 20}}
    )  # fmt: skip
    schedules = Schedules(config)
    assert schedules.at(10).lr == pytest.approx(5e-4)
    assert schedules.at(19).last_layer_lr == 0.0
    assert schedules.at(20).last_layer_lr == schedules.at(20).lr > 0
