"""Stochastic depth whose draws come from outside, so that they never depend on the world size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Above this rate the reference computes a branch only for the samples that keep it.
_SUBSET_ABOVE = 0.1

Branch = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DropPath:
    """Which samples take each residual branch of one forward pass.

    `rows`: int64 [2 × depth, kept], the samples that run branch i (subset mode); `factors`: float32
    [2 × depth, n], 0 or 1 / (1 − rate) (Bernoulli mode). Branch 2 i is the attention of block i,
    2 i + 1 its MLP.
    """

    rows: Tensor | None = None
    factors: Tensor | None = None

    def residual(self, index: int, x: Tensor, branch: Branch) -> Tensor:
        """x + branch(x), [n, tokens, dim], with branch `index` dropped for some samples."""
        if self.rows is not None:
            rows = self.rows[index]
            return x.index_add(0, rows, branch(x[rows]).to(x.dtype), alpha=x.shape[0] / rows.shape[0])
        if self.factors is not None:
            return x + branch(x) * self.factors[index].view(-1, 1, 1).to(x.dtype)
        return x + branch(x)


KEEP_ALL = DropPath()


def draw_drop_path(
    rate: float, depth: int, num_samples: int, rng: np.random.Generator, device: torch.device
) -> DropPath:
    """One forward pass's draws at a uniform `rate`.

    Above 0.1 exactly ⌊n (1 − rate)⌋ samples run a branch and their residual is scaled by n / kept, as
    DINOv2 does: fewer FLOPs, fixed shapes. Below, each sample keeps a branch independently.
    """
    if rate == 0 or num_samples == 0:
        return KEEP_ALL
    if rate > _SUBSET_ABOVE:
        kept = max(int(num_samples * (1 - rate)), 1)
        order = rng.random((2 * depth, num_samples)).argsort(axis=1, kind="stable")[:, :kept]
        return DropPath(rows=torch.from_numpy(np.ascontiguousarray(order)).to(device))
    keep = rng.random((2 * depth, num_samples)) >= rate
    factors = (keep / (1 - rate)).astype(np.float32)
    return DropPath(factors=torch.from_numpy(factors).to(device))
