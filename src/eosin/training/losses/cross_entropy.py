"""Cross-entropy between teacher and student over many prototypes, never all logits at once.

Softmax centring and Sinkhorn-Knopp both end in softmax(z / T + shift) with one `shift` per prototype
(minus the centre over T, or the logarithm of the row scalings), so that targets are recomputed from
bottleneck features wherever they are needed.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from eosin.models.device import compiled
from eosin.training.world import World


class Readout(NamedTuple):
    """How bottleneck features become logits. The temperature is a tensor: a number would be compiled in."""

    weight: Tensor
    """[K, d], in the dtype that products are taken in."""
    temperature: Tensor
    """float32 []."""
    shift: Tensor | None
    """float32 [K]."""


class Chunk(NamedTuple):
    """What one chunk adds to the sums of a batch, and its gradient by the student's rows."""

    sums: Tensor
    """float32 [terms]."""
    by_rows: Tensor
    """float32, shaped as the student's rows."""
    by_weight: Tensor
    """[K, d] in the weight's dtype."""


def scores_of(rows: Tensor, readout: Readout) -> Tensor:
    """Float32 logits over the temperature [..., K] of `rows` [..., d], shifted."""
    scores = F.linear(rows.to(readout.weight.dtype), readout.weight).float() / readout.temperature
    return scores if readout.shift is None else scores + readout.shift


def dino_chunk(student_rows: Tensor, student: Readout, teacher_rows: Tensor, teacher: Readout) -> Chunk:
    """Sums [local, global, teacher entropy] of samples; rows [2 + num_local, n, d], teacher's [2, n, d]."""
    targets = scores_of(teacher_rows, teacher).softmax(-1)
    crossed, by_global = _loss_and_gradient(scores_of(student_rows[:2], student), targets.flip(0), 1.0)
    # The pairs of a local crop share its logits: two targets at once, of mass two.
    pairs, by_local = _loss_and_gradient(scores_of(student_rows[2:], student), targets.sum(0), 2.0)
    entropy = -torch.xlogy(targets, targets).sum()
    sums = torch.stack([pairs.sum(), crossed.sum(), entropy])
    return _chunk(sums, torch.cat([by_global, by_local]), student_rows, student, student.temperature)


def ibot_chunk(
    student_rows: Tensor, student: Readout, teacher_rows: Tensor, teacher: Readout, weights: Tensor
) -> Chunk:
    """The weighted sum [1] over masked tokens; both rows [m, d], `weights` [m]."""
    targets = scores_of(teacher_rows, teacher).softmax(-1)
    losses, by_scores = _loss_and_gradient(scores_of(student_rows, student), targets, 1.0)
    scale = student.temperature / weights[:, None]
    return _chunk((losses * weights).sum()[None], by_scores, student_rows, student, scale)


def log_row_sums(rows: Tensor, readout: Readout, log_rows: Tensor | None) -> Tensor:
    """log Σ_b exp(z_bk / T) c_b [K], where c makes every row b sum to one under `log_rows` (None: c = 1)."""
    scores = scores_of(rows, readout)
    if log_rows is not None:
        scores = scores - (scores + log_rows).logsumexp(dim=1, keepdim=True)
    return scores.logsumexp(dim=0)


def _loss_and_gradient(scores: Tensor, targets: Tensor, mass: float) -> tuple[Tensor, Tensor]:
    """−Σ_k targets · log softmax(scores) [...], and its gradient by the scores [..., K].

    `targets` [..., K] sum to `mass` and may broadcast over leading axes.
    """
    log_p = scores.log_softmax(-1)
    losses = -(log_p * targets).sum(-1)
    return losses, log_p.exp_().mul_(mass).sub_(targets)


def _chunk(sums: Tensor, by_scores: Tensor, rows: Tensor, readout: Readout, divisor: Tensor) -> Chunk:
    dtype = readout.weight.dtype
    by_scores = (by_scores / divisor).to(dtype)
    by_weight = by_scores.flatten(0, -2).T @ rows.flatten(0, -2).to(dtype)
    return Chunk(sums, (by_scores @ readout.weight).float(), by_weight)


class Kernels(NamedTuple):
    """The arithmetic on one chunk of logits, functions of tensors alone: as they are, or compiled.

    Run one operation after another, a chunk's float32 logits go through memory some twenty times; compiled,
    two reductions and one elementwise pass read the products as they are. At 65,536 prototypes that is more
    time than a small backbone takes.
    """

    dino: Callable[[Tensor, Readout, Tensor, Readout], Chunk] = dino_chunk
    ibot: Callable[[Tensor, Readout, Tensor, Readout, Tensor], Chunk] = ibot_chunk
    log_row_sums: Callable[[Tensor, Readout, Tensor | None], Tensor] = log_row_sums


PLAIN = Kernels()


def compiled_kernels(**options: Any) -> Kernels:
    """The kernels compiled for each shape they meet: two chunk sizes a problem at most."""
    return Kernels(*(compiled(kernel, **options) for kernel in PLAIN))


# Float32 logits held by one chunk (256 MiB); a chunk keeps a handful of tensors of this size.
CHUNK_ELEMENTS = 2**26


@dataclass(frozen=True)
class Prototypes:
    """How bottleneck features become probabilities: `weight` [K, d], a temperature, a `shift` [K]."""

    weight: Tensor
    temperature: float
    shift: Tensor | None = None

    def summed_logits(self, features: Tensor) -> Tensor:
        """Float32 [K]: the sum of the plain logits of `features` [rows, d], which is that of their sum."""
        with torch.autocast(features.device.type, enabled=False):
            return torch.mv(self.weight.float(), features.float().sum(0))

    def readout(self) -> Readout:
        """With the weight as autocast would cast it, once for all chunks."""
        device = self.weight.device
        temperature = torch.full((), self.temperature, device=device)
        weight = self.weight.detach()
        if torch.is_autocast_enabled(device.type):
            weight = weight.to(torch.get_autocast_dtype(device.type))
        return Readout(weight, temperature, self.shift)


Parts = Callable[[], Iterator[tuple[tuple[slice, ...], Chunk]]]
"""Where in the student's rows each chunk lies, and the chunk."""


def chunks(num_rows: int, num_prototypes: int, rows_each: int = 1) -> Iterator[slice]:
    """Slices of `num_rows`, as even as may be, whose `rows_each` logit rows a row stay within a chunk."""
    most = max(CHUNK_ELEMENTS // (num_prototypes * rows_each), 1)
    step = math.ceil(num_rows / max(math.ceil(num_rows / most), 1))
    for start in range(0, num_rows, step or 1):
        yield slice(start, min(start + step, num_rows))


def dino_terms(
    student_global: Tensor,
    student_local: Tensor,
    teacher_global: Tensor,
    student: Prototypes,
    teacher: Prototypes,
    kernels: Kernels = PLAIN,
) -> Tensor:
    """Summed DINO cross-entropies of n samples: float32 [local, global, teacher entropy].

    `student_global`, `teacher_global`: bottleneck features [2, n, d] of the two global views;
    `student_local`: [num_local, n, d]. Every local crop is compared with both teacher views, every
    global crop with the other view's teacher. The entropy is the teacher's, summed over 2 n rows, in
    nats, without gradient. Sums, not means: divide by global counts. The gradient of both terms runs
    through the second, so they must be weighted alike, as in the loss they are.
    """
    rows = torch.cat([student_global, student_local])
    seen, ours, theirs = rows.detach(), student.readout(), teacher.readout()

    def parts() -> Iterator[tuple[tuple[slice, ...], Chunk]]:
        for part in chunks(rows.shape[1], student.weight.shape[0], 2 + rows.shape[0]):
            yield (slice(None), part), kernels.dino(seen[:, part], ours, teacher_global[:, part], theirs)

    total, sums = _FusedCrossEntropy.apply(rows, student.weight, parts, 3, 2)  # type: ignore[no-untyped-call]  # torch's `apply` has no types
    return torch.stack([sums[0], total - sums[0], sums[2]])


def ibot_sum(
    student_tokens: Tensor,
    teacher_tokens: Tensor,
    weights: Tensor,
    student: Prototypes,
    teacher: Prototypes,
    kernels: Kernels = PLAIN,
) -> Tensor:
    """Σ weight · cross-entropy over m masked tokens, float32 scalar (0 where m is 0).

    `student_tokens`, `teacher_tokens`: bottleneck features [m, d]; `weights` [m]: 1 / the number of
    masked tokens of the image a token belongs to.
    """
    seen, ours, theirs = student_tokens.detach(), student.readout(), teacher.readout()

    def parts() -> Iterator[tuple[tuple[slice, ...], Chunk]]:
        for part in chunks(seen.shape[0], student.weight.shape[0], 3):
            yield (part,), kernels.ibot(seen[part], ours, teacher_tokens[part], theirs, weights[part])

    total, _ = _FusedCrossEntropy.apply(student_tokens, student.weight, parts, 1, 1)  # type: ignore[no-untyped-call]  # torch's `apply` has no types
    return cast(Tensor, total)


class _FusedCrossEntropy(torch.autograd.Function):
    """(Σ of the first `num_losses` sums, all `num_sums` of them without gradient).

    The gradients of the rows and of the prototypes are made with each chunk's loss, while its logits are
    there: one pass, no logits kept and none computed twice. Costs the memory of the two gradients,
    [rows, d] and [K, d] in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, parts: Parts, num_sums: int, num_losses: int
    ) -> tuple[Tensor, Tensor]:
        sums = torch.zeros(num_sums, device=rows.device)
        by_rows = torch.zeros_like(rows, dtype=torch.float32)
        by_weight = torch.zeros_like(weight, dtype=torch.float32)
        for place, chunk in parts():
            sums += chunk.sums
            by_rows[place] = chunk.by_rows
            by_weight += chunk.by_weight
        ctx.gradients = by_rows.to(rows.dtype), by_weight.to(weight.dtype)
        ctx.mark_non_differentiable(sums)
        return sums[:num_losses].sum(), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_total: Tensor, by_sums: Tensor) -> tuple[Tensor | None, ...]:
        by_rows, by_weight = ctx.gradients
        del ctx.gradients
        return by_rows.mul_(by_total), by_weight.mul_(by_total), None, None, None


class SinkhornProblem(NamedTuple):
    """One assignment to solve: features [rows, d] of this rank's microbatches, prototypes [K, d].

    Rows of all ranks together are the batch.
    """

    features: Mapping[int, Tensor]
    prototypes: Prototypes


def sinkhorn_shifts(
    problems: Sequence[SinkhornProblem], world: World, num_iterations: int = 3, kernels: Kernels = PLAIN
) -> list[Tensor]:
    """For each problem log r [K] such that softmax(z / T + log r) is its Sinkhorn-Knopp assignment.

    The reference alternates rows ÷ Σrow ÷ K and columns ÷ Σcol ÷ B; constants cancel in the
    last column step, which is a softmax of each row, so that log r is all there is to keep (equation:
    Cuturi 2013; Caron et al. 2020). Everything is done in logarithms: no shift by a maximum can
    underflow, however sharp the logits. Costs one pass over the logits and two all-reduces of [ΣK] an
    iteration, all problems together; logits are recomputed in chunks.
    """
    readouts = [problem.prototypes.readout() for problem in problems]
    sizes = [readout.weight.shape[0] for readout in readouts]
    log_rows = [torch.zeros(size, device=readouts[0].weight.device) for size in sizes]
    for iteration in range(num_iterations):
        sums = {
            microbatch: torch.cat(
                [
                    _log_row_sums(p.features[microbatch], readout, rows if iteration else None, kernels)
                    for p, readout, rows in zip(problems, readouts, log_rows, strict=True)
                ]
            )
            for microbatch in problems[0].features
        }
        total = _log_sum_over_microbatches(sums, torch.cat(log_rows), world)
        log_rows = [-rows for rows in torch.split(total, sizes)]
    return log_rows


def _log_row_sums(rows: Tensor, readout: Readout, log_rows: Tensor | None, kernels: Kernels) -> Tensor:
    """`log_row_sums` of all rows, chunk by chunk."""
    parts = [
        kernels.log_row_sums(rows[part], readout, log_rows)
        for part in chunks(rows.shape[0], readout.weight.shape[0], 3)
    ]
    if not parts:
        return torch.full_like(readout.weight[:, 0], -torch.inf, dtype=torch.float32)
    return parts[0] if len(parts) == 1 else torch.stack(parts).logsumexp(dim=0)


def _log_sum_over_microbatches(log_sums: Mapping[int, Tensor], like: Tensor, world: World) -> Tensor:
    largest = world.max_over_microbatches(log_sums, like)
    scaled = {microbatch: (value - largest).exp() for microbatch, value in log_sums.items()}
    return largest + world.sum_over_microbatches(scaled, like).log()
