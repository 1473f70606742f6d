"""Cross-entropy between teacher and student over many prototypes, never all logits at once.

Softmax centring and Sinkhorn-Knopp both end in softmax(z / T + shift) with one `shift` per prototype
(minus the centre over T, or the logarithm of the row scalings), so that targets are recomputed from
bottleneck features wherever they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

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

    def in_compute_dtype(self) -> Prototypes:
        """With the weight as autocast would cast it, so that it is cast once, not once a chunk."""
        device = self.weight.device.type
        if not torch.is_autocast_enabled(device):
            return self
        return Prototypes(self.weight.to(torch.get_autocast_dtype(device)), self.temperature, self.shift)


class Block(NamedTuple):
    """Rows of one chunk: `rows` indexes the student's features, `targets` [..., K] may broadcast over
    leading axes, `weights` [...] multiply each row's loss, `term` says which sum it counts for."""

    rows: tuple[slice, ...]
    targets: Tensor
    term: int = 0
    weights: Tensor | None = None


Blocks = Callable[[], Iterator[Block]]


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
    nats, without gradient. Sums, not means: divide by global counts. The gradient of both terms runs
    through the second, so they must be weighted alike, as in the loss they are.
    """
    teacher = teacher.in_compute_dtype()
    entropy = torch.zeros((), device=teacher_global.device)

    def blocks() -> Iterator[Block]:
        rows_each = 4 + student_local.shape[0]
        for part in chunks(teacher_global.shape[1], teacher.weight.shape[0], rows_each):
            targets = teacher.probabilities(teacher_global[:, part])
            entropy.sub_(torch.xlogy(targets, targets).sum())
            if student_local.shape[0]:
                yield Block((slice(2, None), part), targets.sum(0), term=0)
            yield Block((slice(0, 2), part), targets.flip(0), term=1)

    total, terms = cross_entropy(torch.cat([student_global, student_local]), student, blocks, num_terms=2)
    return torch.stack([terms[0], total - terms[0], entropy])


def ibot_sum(
    student_tokens: Tensor, teacher_tokens: Tensor, weights: Tensor, student: Prototypes, teacher: Prototypes
) -> Tensor:
    """Σ weight · cross-entropy over m masked tokens, float32 scalar (0 where m is 0).

    `student_tokens`, `teacher_tokens`: bottleneck features [m, d]; `weights` [m]: 1 / the number of
    masked tokens of the image a token belongs to.
    """
    teacher = teacher.in_compute_dtype()

    def blocks() -> Iterator[Block]:
        for part in chunks(student_tokens.shape[0], teacher.weight.shape[0], 3):
            yield Block((part,), teacher.probabilities(teacher_tokens[part]), weights=weights[part])

    return cross_entropy(student_tokens, student, blocks)[0]


def cross_entropy(
    features: Tensor, student: Prototypes, blocks: Blocks, num_terms: int = 1
) -> tuple[Tensor, Tensor]:
    """(Σ over all blocks, float32; the sums by term [num_terms], without gradient).

    The gradients of the features and of the prototypes are made with each chunk's loss, while its
    logits are there: one pass, no logits kept and none computed twice. Costs the memory of the two
    gradients, [rows, d] and [K, d] in float32.
    """
    return _FusedCrossEntropy.apply(features, student.weight, student, blocks, num_terms)  # type: ignore[no-any-return,no-untyped-call]


class _FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, student: Prototypes, blocks: Blocks, num_terms: int
    ) -> tuple[Tensor, Tensor]:
        compute = student.in_compute_dtype()
        terms = torch.zeros(num_terms, device=features.device)
        by_features = torch.zeros_like(features, dtype=torch.float32)
        by_weight = torch.zeros_like(weight, dtype=torch.float32)
        for block in blocks():
            loss, by_scores = _loss_and_gradient(compute.scores(features[block.rows]), block)
            terms[block.term] += loss
            by_scores = (by_scores / student.temperature).to(compute.weight.dtype)
            by_features[block.rows] = (by_scores @ compute.weight).float()
            rows = features[block.rows].flatten(0, -2).to(compute.weight.dtype)
            by_weight += by_scores.flatten(0, -2).T @ rows
        ctx.gradients = by_features.to(features.dtype), by_weight.to(weight.dtype)
        ctx.mark_non_differentiable(terms)
        return terms.sum(), terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_total: Tensor, by_terms: Tensor) -> tuple[Tensor | None, ...]:
        by_features, by_weight = ctx.gradients
        del ctx.gradients
        return by_features.mul_(by_total), by_weight.mul_(by_total), None, None, None


def _loss_and_gradient(scores: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    """Σ of −targets · log softmax(scores), and its gradient by the scores [..., K]."""
    log_sums = scores.logsumexp(dim=-1, keepdim=True)
    mass = block.targets.sum(-1, keepdim=True)
    losses = (log_sums * mass).squeeze(-1) - (scores * block.targets).sum(-1)
    gradient = scores.sub_(log_sums).exp_().mul_(mass).sub_(block.targets)
    if block.weights is not None:
        losses, gradient = losses * block.weights, gradient.mul_(block.weights.unsqueeze(-1))
    return losses.sum(), gradient
