"""The chunked loss against the plain one, which holds all logits and lets autograd do the rest."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from eosin.training.losses import cross_entropy
from eosin.training.losses.cross_entropy import (
    Prototypes,
    SinkhornProblem,
    dino_terms,
    ibot_sum,
    sinkhorn_shifts,
)
from eosin.training.world import World

K, DIM, N, NUM_LOCAL = 50, 12, 7, 3
GENERATOR = torch.Generator().manual_seed(11)


def unit(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=GENERATOR), dim=-1)


STUDENT, TEACHER = torch.randn(K, DIM, generator=GENERATOR), torch.randn(K, DIM, generator=GENERATOR)
SHIFT = torch.randn(K, generator=GENERATOR)
GLOBAL, LOCAL, SEEN = unit(2, N, DIM), unit(NUM_LOCAL, N, DIM), unit(2, N, DIM)
TOKENS, SEEN_TOKENS, WEIGHTS = unit(19, DIM), unit(19, DIM), torch.rand(19, generator=GENERATOR)


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Within 2e-6 of the norm, whatever single entries that nearly cancel may be."""
    return float((ours - theirs).norm()) <= 2e-6 * float(theirs.norm())


def log_probabilities(features: Tensor, weight: Tensor) -> Tensor:
    return (features @ weight.T / 0.1).log_softmax(-1)


def plain_dino(student: Tensor, local: Tensor, weight: Tensor, targets: Tensor) -> list[Tensor]:
    ours, theirs = log_probabilities(local, weight), log_probabilities(student, weight)
    pairs = [-(ours[i] * targets[j]).sum() for i in range(len(local)) for j in range(2)]
    crossed = [-(theirs[0] * targets[1]).sum(), -(theirs[1] * targets[0]).sum()]
    return [torch.stack(part).sum() if part else torch.zeros(()) for part in (pairs, crossed)]


@pytest.fixture(params=[2**26, K * (4 + NUM_LOCAL) * 2, 1], ids=["one chunk", "chunks of 2", "row by row"])
def chunk_elements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", request.param)
    return int(request.param)


@pytest.mark.parametrize("local", [LOCAL, LOCAL[:0]], ids=["with local crops", "without"])
def test_dino_loss_and_gradients_are_the_plain_ones(chunk_elements: int, local: Tensor) -> None:
    plain_inputs = [x.clone().requires_grad_() for x in (GLOBAL, local, STUDENT)]
    inputs = [x.clone().requires_grad_() for x in (GLOBAL, local, STUDENT)]
    teacher = Prototypes(TEACHER, 0.05, SHIFT)
    targets = cross_entropy.scores_of(SEEN, teacher.readout()).softmax(-1)
    expected = plain_dino(*plain_inputs, targets)
    terms = dino_terms(inputs[0], inputs[1], SEEN, Prototypes(inputs[2], 0.1), teacher)

    assert terms[0].item() == pytest.approx(expected[0].item(), rel=1e-6, abs=1e-6)
    assert terms[1].item() == pytest.approx(expected[1].item(), rel=1e-5)
    assert terms[2].item() == pytest.approx(-torch.xlogy(targets, targets).sum().item(), rel=1e-5)
    ((expected[0] + expected[1]) * 0.25).backward()
    ((terms[0] + terms[1]) * 0.25).backward()
    for ours, theirs in zip(inputs, plain_inputs, strict=True):
        assert ours.grad is not None
        expected_grad = torch.zeros_like(ours) if theirs.grad is None else theirs.grad
        assert close(ours.grad, expected_grad)


def test_ibot_loss_and_gradients_are_the_plain_ones(chunk_elements: int) -> None:
    plain_inputs = [x.clone().requires_grad_() for x in (TOKENS, STUDENT)]
    inputs = [x.clone().requires_grad_() for x in (TOKENS, STUDENT)]
    teacher = Prototypes(TEACHER, 0.05, SHIFT)
    targets = cross_entropy.scores_of(SEEN_TOKENS, teacher.readout()).softmax(-1)
    losses = -(log_probabilities(*plain_inputs) * targets).sum(-1)
    expected = (losses * WEIGHTS).sum()
    total = ibot_sum(inputs[0], SEEN_TOKENS, WEIGHTS, Prototypes(inputs[1], 0.1), teacher)

    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    (expected / 3).backward()
    (total / 3).backward()
    for ours, theirs in zip(inputs, plain_inputs, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert close(ours.grad, theirs.grad)


def test_no_masked_token_is_no_loss_and_no_gradient() -> None:
    tokens = TOKENS[:0].clone().requires_grad_()
    total = ibot_sum(tokens, SEEN_TOKENS[:0], WEIGHTS[:0], Prototypes(STUDENT, 0.1), Prototypes(TEACHER, 0.1))
    total.backward()
    assert total.item() == 0.0 and tokens.grad is not None and tokens.grad.shape == (0, DIM)


def test_no_more_logits_at_once_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    scores = cross_entropy.scores_of

    def counted(rows: Tensor, readout: cross_entropy.Readout) -> Tensor:
        result = scores(rows, readout)
        made.append(result.numel())
        return result

    monkeypatch.setattr(cross_entropy, "scores_of", counted)
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", K * 9)
    student, teacher = Prototypes(STUDENT, 0.1), Prototypes(TEACHER, 0.05)
    dino_terms(GLOBAL, LOCAL, SEEN, student, teacher)
    ibot_sum(TOKENS, SEEN_TOKENS, WEIGHTS, student, teacher)
    sinkhorn_shifts([SinkhornProblem({0: SEEN_TOKENS}, teacher)], World(1))[0]
    assert max(made) <= K * 9 and sum(made) > 10 * max(made)


def test_bf16_autocast_accumulates_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", K * 9)
    weight, tokens = STUDENT.clone().requires_grad_(), TOKENS.clone().requires_grad_()
    teacher = Prototypes(TEACHER, 0.05, SHIFT)
    plain = ibot_sum(TOKENS, SEEN_TOKENS, WEIGHTS, Prototypes(STUDENT, 0.1), teacher)
    with torch.autocast("cpu", torch.bfloat16):
        total = ibot_sum(tokens, SEEN_TOKENS, WEIGHTS, Prototypes(weight, 0.1), teacher)
    total.backward()
    assert total.dtype == torch.float32 and total.item() == pytest.approx(plain.item(), rel=0.02)
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    # bf16 alone has 8 bits: entries that it can tell apart would be equal, had sums been kept in it.
    assert not torch.equal(weight.grad, weight.grad.bfloat16().float())


class CountingWorld(World):
    """Counts the collectives a world of many ranks would make."""

    calls: list[str]

    def max_over_microbatches(self, parts: Mapping[int, Tensor], like: Tensor) -> Tensor:
        self.calls.append("max")
        return super().max_over_microbatches(parts, like)

    def sum_over_microbatches(self, parts: Mapping[int, Tensor], like: Tensor) -> Tensor:
        self.calls.append("sum")
        return super().sum_over_microbatches(parts, like)


def test_two_sinkhorn_problems_share_their_collectives() -> None:
    world = CountingWorld(2)
    object.__setattr__(world, "calls", [])
    dino = SinkhornProblem(
        {0: SEEN[:, :4].flatten(0, 1), 1: SEEN[:, 4:].flatten(0, 1)}, Prototypes(TEACHER, 0.05)
    )
    ibot = SinkhornProblem({0: SEEN_TOKENS[:0], 1: SEEN_TOKENS}, Prototypes(STUDENT[:31], 0.07))
    together = sinkhorn_shifts([dino, ibot], world)
    assert world.calls == ["max", "sum"] * 3
    for problem, shift in zip((dino, ibot), together, strict=True):
        assert torch.equal(
            shift, sinkhorn_shifts([SinkhornProblem(problem.features, problem.prototypes)], World(2))[0]
        )


BACKENDS = [
    pytest.param("aot_eager", id="traced"),
    pytest.param("inductor", id="lowered", marks=pytest.mark.long),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_kernels_are_whole_graphs_of_the_same_function(
    backend: str, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of two sizes and a temperature that changes: no version is compiled for a number."""
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", K * 9)
    torch._dynamo.reset()
    counters = CompileCounterWithBackend(backend)
    made = cross_entropy.compiled_kernels(backend=counters)
    frames = []
    for temperature in (0.05, 0.041, 0.07):
        teacher = Prototypes(TEACHER, temperature, SHIFT)
        found = []
        for chosen in (cross_entropy.PLAIN, made):
            inputs = [x.clone().requires_grad_() for x in (GLOBAL, LOCAL, TOKENS, STUDENT)]
            student = Prototypes(inputs[3], 0.1)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                terms = dino_terms(inputs[0], inputs[1], SEEN, student, teacher, chosen)
                total = ibot_sum(inputs[2], SEEN_TOKENS, WEIGHTS, student, teacher, chosen)
                rows = {0: SEEN_TOKENS}
                (shift,) = sinkhorn_shifts([SinkhornProblem(rows, teacher)], World(1), kernels=chosen)
            (terms[:2].sum() + total).backward()
            found.append([terms.detach(), total.detach(), shift, *(x.grad for x in inputs)])
        for ours, theirs in zip(*found, strict=True):
            assert ours is not None and theirs is not None
            limit = 1e-5 if precision == torch.float32 else 2e-2
            assert float((ours - theirs).norm() / theirs.norm()) < limit
        frames.append(counters.frame_count)
    assert frames[0] == frames[-1] and frames[0] <= 8
    torch._dynamo.reset()
