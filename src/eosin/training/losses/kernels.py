"""The arithmetic on one chunk of logits, as functions of tensors alone, so that they can be compiled.

Run one operation after another, a chunk's float32 logits go through memory some twenty times; compiled, two
reductions and one elementwise pass read the products as they are. At 65,536 prototypes that is more time
than a small backbone takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from eosin.models.compiling import compiled


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
    """The functions above, as they are or compiled."""

    dino: Callable[[Tensor, Readout, Tensor, Readout], Chunk] = dino_chunk
    ibot: Callable[[Tensor, Readout, Tensor, Readout, Tensor], Chunk] = ibot_chunk
    log_row_sums: Callable[[Tensor, Readout, Tensor | None], Tensor] = log_row_sums


PLAIN = Kernels()


def compiled_kernels(**options: Any) -> Kernels:
    """The kernels compiled for each shape they meet: two chunk sizes a problem at most."""
    return Kernels(*(compiled(kernel, **options) for kernel in PLAIN))
