"""Sinkhorn-Knopp over the global batch: only its row scalings are kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from eosin.training.losses.cross_entropy import Prototypes, chunks
from eosin.training.world import World


def sinkhorn_shift(
    features: Mapping[int, Tensor], prototypes: Prototypes, world: World, num_iterations: int = 3
) -> Tensor:
    """log r [K] such that softmax(z / T + log r) is the Sinkhorn-Knopp assignment of every row.

    `features`: bottleneck features [rows, d] of this rank's slots; rows of all ranks together are the
    batch. The reference alternates rows ÷ Σrow ÷ K and columns ÷ Σcol ÷ B; constants cancel in the
    last column step, which is a softmax of each row, so that log r is all there is to keep (equation:
    Cuturi 2013; Caron et al. 2020). Everything is done in logarithms: no shift by a maximum can
    underflow, however sharp the logits. Costs one pass over the logits and two all-reduces of [K] an
    iteration; logits are recomputed in chunks.
    """
    num_prototypes = prototypes.weight.shape[0]
    log_rows = torch.zeros(num_prototypes, device=prototypes.weight.device)
    for iteration in range(num_iterations):
        sums = {
            slot: _log_row_sums(rows, prototypes, log_rows if iteration else None)
            for slot, rows in features.items()
        }
        log_rows = -_log_sum_over_slots(sums, log_rows, world)
    return log_rows


def _log_row_sums(rows: Tensor, prototypes: Prototypes, log_rows: Tensor | None) -> Tensor:
    """log Σ_b exp(z_bk / T) c_b [K], where c makes every row b sum to one under `log_rows`."""
    parts = []
    for part in chunks(rows.shape[0], prototypes.weight.shape[0], 3):
        scores = prototypes.scores(rows[part])
        if log_rows is not None:
            scores = scores - (scores + log_rows).logsumexp(dim=1, keepdim=True)
        parts.append(scores.logsumexp(dim=0))
    if not parts:
        return torch.full_like(prototypes.weight[:, 0], -torch.inf, dtype=torch.float32)
    return torch.stack(parts).logsumexp(dim=0)


def _log_sum_over_slots(log_sums: Mapping[int, Tensor], like: Tensor, world: World) -> Tensor:
    largest = world.max_over_slots(log_sums, like)
    scaled = {slot: (value - largest).exp() for slot, value in log_sums.items()}
    return largest + world.sum_over_slots(scaled, like).log()
