"""Sinkhorn-Knopp over the global batch: only its row scalings are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eosin.training.losses.cross_entropy import PLAIN, Kernels, Prototypes, Readout, chunks
from eosin.training.world import World


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
