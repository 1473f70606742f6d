"""A whole training step against the reference's loss terms and gradients (tests/data/golden)."""

import dataclasses

import pytest
import torch
from torch import Tensor

from eosin.config.train import KdeConfig, KoLeoConfig, OptimizerConfig
from eosin.training.engine.objective import Objective
from eosin.training.engine.optimizer import multipliers
from eosin.training.engine.parallel import clip_each_
from eosin.training.engine.step import Learner, StepResult
from eosin.training.world import World
from tests.support.golden import (
    VALUES,
    flat_gradients,
    microbatches,
    network,
    our_state,
    part,
    relative_error,
    step_config,
    tensors,
)

STEPS = ["sinkhorn_separate_heads", "centering_shared_head_registers"]


def take_step(name: str, num_microbatches: int = 1, **train: object) -> tuple[StepResult, dict[str, Tensor]]:
    """The step's result and its gradients before clipping."""
    golden = tensors(f"step_{name}")
    config = step_config(name, num_microbatches)
    config = config.model_copy(
        update={
            "train": config.train.model_copy(
                update={
                    "optimizer": OptimizerConfig(clip_grad_norm=None),
                    "dino": config.train.dino.model_copy(update={"teacher_temperature_warmup": 0.05,
                                                                 "teacher_temperature": 0.05}),
                    **train,
                }
            )
        }
    )  # fmt: skip
    learner = Learner(config, network(config, golden, "student"), World(num_microbatches))
    learner.teacher.load_state_dict(network(config, golden, "teacher").state_dict())
    result = learner.step(0, microbatches(golden, num_microbatches))
    return result, flat_gradients(learner.student)


@pytest.mark.parametrize("name", STEPS)
def test_loss_terms(name: str) -> None:
    result, _ = take_step(name)
    golden = VALUES["steps"][name]
    assert result.loss == pytest.approx(golden["total"], rel=1e-5)
    assert result.terms["dino_local"] == pytest.approx(golden["dino_local_crops_loss"], rel=1e-5)
    assert result.terms["dino_global"] == pytest.approx(golden["dino_global_crops_loss"], rel=1e-5)
    # The reference reports halves of these two.
    assert result.terms["ibot"] == pytest.approx(2 * golden["ibot_loss"], rel=1e-5)
    assert result.terms["koleo"] == pytest.approx(2 * golden["koleo_loss"], rel=1e-5)


@pytest.mark.parametrize("name", STEPS)
def test_gradient_of_every_parameter(name: str) -> None:
    _, ours = take_step(name)
    golden = tensors(f"step_{name}")
    theirs = part(golden, "grad.")
    if "registers" in name:
        # A folded token has the token's own gradient, and the patches' positions keep theirs.
        theirs["backbone.pos_embed"] = theirs["backbone.pos_embed"][:, 1:]
    folded = our_state(theirs, registers=False)
    whole = torch.cat([folded[name].flatten() for name in sorted(folded)])
    mine = torch.cat([ours[name].flatten() for name in sorted(folded)])
    assert relative_error(mine, whole) < 1e-5
    # The mask token exists on both sides; the reference's file has no entry where it is not in the graph.
    assert set(folded) <= set(ours)
    for key, gradient in folded.items():
        # Key biases have no gradient but rounding noise, hence a floor by the largest gradient.
        error = (ours[key] - gradient).norm() / max(float(gradient.norm()), 1e-3 * float(whole.norm()))
        assert error < 2e-5, key


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("num_microbatches", [2, 3])
def test_splitting_into_microbatches_changes_nothing(name: str, num_microbatches: int) -> None:
    """All terms are of the batch however it is cut, and KoLeo of the set that is stated."""
    golden = VALUES["steps"][name]
    result, gradients = take_step(name, num_microbatches, koleo=KoLeoConfig(set_size=6))
    _, whole = take_step(name, 1)
    assert result.terms["koleo"] == pytest.approx(2 * golden["koleo_loss"], rel=1e-5)
    assert result.terms["dino_local"] == pytest.approx(golden["dino_local_crops_loss"], rel=1e-5)
    assert result.terms["dino_global"] == pytest.approx(golden["dino_global_crops_loss"], rel=1e-5)
    assert result.terms["ibot"] == pytest.approx(2 * golden["ibot_loss"], rel=1e-5)
    mine = torch.cat([value.flatten() for value in gradients.values()])
    assert relative_error(mine, torch.cat([whole[key].flatten() for key in gradients])) < 1e-5


@pytest.mark.parametrize("method", ["dino", "dinov2"])
@pytest.mark.parametrize("pack", ["on", "off"])
def test_without_local_crops_the_class_tokens_of_the_two_views_are_left(method: str, pack: str) -> None:
    """A mean over their two pairs; DINOv2's code divides by three there, and so by 3 / 8 of what 3 local
    crops make of it."""
    name = STEPS[method == "dino"]
    golden, config = tensors(f"step_{name}"), step_config(name)
    train = config.train.model_copy(update={"method": method, "pack": pack})
    augment = config.augment.model_copy(update={"num_local": 0})
    config = config.model_copy(update={"train": train, "augment": augment})
    student, teacher = (network(config, golden, copy) for copy in ("student", "teacher"))
    whole = microbatches(golden, 1)[0]
    microbatch = dataclasses.replace(whole, local_crops=whole.local_crops[:0])
    if method == "dino":
        microbatch = dataclasses.replace(microbatch, masks=None, masked=None)
    objective = Objective(train, World(1))
    centers = objective.new_centers(teacher)
    targets = objective.targets(teacher, {0: microbatch}, centers, 0.05)
    terms = objective.microbatch_terms(student, 0, microbatch, targets)
    terms[:5].sum().backward()
    crossed = VALUES["steps"][name]["dino_global_crops_loss"]
    terms = terms.detach()
    assert float(terms[0]) == 0 and float(terms[1]) > 0
    if method == "dinov2":
        assert float(terms[1]) == pytest.approx(crossed * 8 / 3, rel=1e-5)
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


def test_dino_clips_every_parameter_by_itself() -> None:
    """As its utils.clip_gradients: each gradient above the limit is scaled to it, the others are left."""
    _, whole = take_step(STEPS[0], 1)
    limit = float(torch.stack([gradient.norm() for gradient in whole.values()]).median())
    student = torch.nn.Module()
    for number, gradient in enumerate(whole.values()):
        parameter = torch.nn.Parameter(torch.zeros_like(gradient))
        parameter.grad = gradient.clone()
        student.register_parameter(str(number), parameter)
    norms = torch.stack([gradient.norm() for gradient in whole.values()])
    clip_each_(student, norms, limit)  # type: ignore[arg-type]  # of a network only the parameters are used
    for parameter, gradient in zip(student.parameters(), whole.values(), strict=True):
        assert parameter.grad is not None
        expected = gradient * min(1.0, limit / (float(gradient.norm()) + 1e-6))
        assert relative_error(parameter.grad, expected) < 1e-6


@pytest.mark.parametrize("set_size", [2, 3, 6])
def test_sets_of_a_stated_size_do_not_depend_on_microbatches(set_size: int) -> None:
    """Within a microbatch, across several, and of the whole batch; two terms with sets of their own."""
    chosen = {"koleo": KoLeoConfig(weight=0.5, set_size=2), "kde": KdeConfig(weight=0.7, set_size=set_size)}
    steps = [take_step(STEPS[0], num_microbatches, **chosen) for num_microbatches in (1, 2, 3)]
    terms = [(result.terms["koleo"], result.terms["kde"]) for result, _ in steps]
    assert terms[1] == pytest.approx(terms[0], rel=1e-5) and terms[2] == pytest.approx(terms[0], rel=1e-5)
    whole, *cut = (torch.cat([value.flatten() for value in gradients.values()]) for _, gradients in steps)
    assert all(relative_error(gradient, whole) < 1e-5 for gradient in cut)
    _, without = take_step(STEPS[0], 1, koleo=KoLeoConfig(weight=0.0))
    assert relative_error(torch.cat([value.flatten() for value in without.values()]), whole) > 1e-3


def test_parameter_groups() -> None:
    key = next(key for key in VALUES if key.startswith("param_groups"))
    config = step_config("centering_shared_head_registers")
    golden = tensors("step_centering_shared_head_registers")
    ours = multipliers(
        network(config, golden, "student"), OptimizerConfig(layer_decay=0.9, patch_embed_lr_multiplier=0.2)
    )
    names = {"pos_embed", "cls_token"}
    for entry in VALUES[key]:
        local = entry["name"].replace("register_tokens", "reg_token")
        if entry["module"] == "backbone" and local != "mask_token":
            local = f"vit.{local}"
        mine = ours.pop(f"{entry['module']}.{local}")
        assert mine.lr == pytest.approx(entry["lr_multiplier"], rel=1e-12), entry
        assert mine.weight_decay == entry["wd_multiplier"], entry
        assert mine.last_layer == entry["is_last_layer"], entry
        names.discard(entry["name"])
    assert not ours and not names
