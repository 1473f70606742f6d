"""Cross-entropy between teacher and student over many prototypes, never all logits at once.

Softmax centring and Sinkhorn-Knopp both end in softmax(z / T + shift) with one `shift` per prototype
(minus the centre over T, or the logarithm of the row scalings), so that targets are recomputed from
bottleneck features wherever they are needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Float32 logits held by one chunk (256 MiB); a chunk keeps a handful of tensors of this size.
CHUNK_ELEMENTS = 2**26


@dataclass(frozen=True)
class Prototypes:
    """How bottleneck features become probabilities: `weight` [K, d], a temperature, a `shift` [K]."""

    weight: Tensor
    temperature: float
    shift: Tensor | None = None

    def scores(self, features: Tensor) -> Tensor:
        """Float32 logits over the temperature [..., K] of `features` [..., d], shifted."""
        scores = F.linear(features, self.weight).float() / self.temperature
        return scores if self.shift is None else scores + self.shift

    def probabilities(self, features: Tensor) -> Tensor:
        return self.scores(features).softmax(dim=-1)

    def log_probabilities(self, features: Tensor) -> Tensor:
        return self.scores(features).log_softmax(dim=-1)


def chunks(num_rows: int, num_prototypes: int, rows_each: int = 1) -> Iterator[slice]:
    """Slices of `num_rows` such that `rows_each` logit rows a row stay within the chunk size."""
    step = max(CHUNK_ELEMENTS // (num_prototypes * rows_each), 1)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def dino_terms(
    student_global: Tensor,
    student_local: Tensor,
    teacher_global: Tensor,
    student: Prototypes,
    teacher: Prototypes,
) -> Tensor:
    """Summed DINO cross-entropies of n samples: float32 [local, global, teacher entropy].

    `student_global`, `teacher_global`: bottleneck features [2, n, d] of the two global views;
    `student_local`: [num_local, n, d]. Every local crop is compared with both teacher views, every
    global crop with the other view's teacher. The entropy is the teacher's, summed over 2 n rows, in
    nats, without gradient. Sums, not means: divide by global counts.
    """
    num_samples = teacher_global.shape[1]
    rows_each = 4 + student_local.shape[0]
    parts = []
    for part in chunks(num_samples, student.weight.shape[0], rows_each):
        views = (student_global[:, part], student_local[:, part], teacher_global[:, part])
        parts.append(_maybe_checkpoint(num_samples, part, _dino_chunk, *views, student, teacher))
    return torch.stack(parts).sum(0)


def ibot_sum(
    student_tokens: Tensor, teacher_tokens: Tensor, weights: Tensor, student: Prototypes, teacher: Prototypes
) -> Tensor:
    """Σ weight · cross-entropy over m masked tokens, float32 scalar (0 where m is 0).

    `student_tokens`, `teacher_tokens`: bottleneck features [m, d]; `weights` [m]: 1 / the number of
    masked tokens of the image a token belongs to.
    """
    num_rows = student_tokens.shape[0]
    total = student_tokens.sum() * 0.0
    for part in chunks(num_rows, student.weight.shape[0], 3):
        tokens = (student_tokens[part], teacher_tokens[part], weights[part])
        total = total + _maybe_checkpoint(num_rows, part, _ibot_chunk, *tokens, student, teacher)
    return total.float()


def _dino_chunk(
    student_global: Tensor,
    student_local: Tensor,
    teacher_global: Tensor,
    student: Prototypes,
    teacher: Prototypes,
) -> Tensor:
    with torch.no_grad():
        targets = teacher.probabilities(teacher_global)
        entropy = -torch.xlogy(targets, targets).sum()
    local = -(student.log_probabilities(student_local) * targets.sum(0)).sum()
    crossed = -(student.log_probabilities(student_global) * targets.flip(0)).sum()
    return torch.stack([local, crossed, entropy])


def _ibot_chunk(
    student_tokens: Tensor, teacher_tokens: Tensor, weights: Tensor, student: Prototypes, teacher: Prototypes
) -> Tensor:
    with torch.no_grad():
        targets = teacher.probabilities(teacher_tokens)
    losses = -(student.log_probabilities(student_tokens) * targets).sum(-1)
    return (losses * weights).sum()


def _maybe_checkpoint(num_rows: int, part: slice, function, *args) -> Tensor:  # type: ignore[no-untyped-def]
    """Recompute a chunk in the backward pass, unless it is the only one."""
    if part.stop - part.start == num_rows:
        return function(*args)  # type: ignore[no-any-return]
    return checkpoint(function, *args, use_reentrant=False)  # type: ignore[no-any-return]
