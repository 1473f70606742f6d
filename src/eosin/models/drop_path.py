"""Stochastic depth whose draws come from outside, so that they never depend on the world size."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from eosin.models.device import to_device

# Above this rate the reference computes a branch only for the samples that keep it.
_SUBSET_ABOVE = 0.1

Layout = tuple[tuple[int, int], ...]
"""(crops, tokens a crop) of each size, in the order in which their tokens are packed."""


class DropPath(NamedTuple):
    """Which of n crops take each residual branch of one forward pass.

    `rows`: int64 [2 × depth, kept], the crops that run branch i (subset mode); `factors`: float32
    [2 × depth, n], 0 or 1 / (1 − rate) (Bernoulli mode). Branch 2 i is the attention of block i,
    2 i + 1 its MLP.
    """

    rows: Tensor | None = None
    factors: Tensor | None = None


class BranchDrop(NamedTuple):
    """The same for one branch over packed tokens.

    Subset mode: `tokens` int64 [kept], where they stand; `scale` float32 [kept, 1]; `layout` of what is
    kept. Bernoulli mode: `scale` [all tokens, 1] alone.
    """

    tokens: Tensor | None = None
    scale: Tensor | None = None
    layout: Layout | None = None


KEEP_ALL = DropPath()
KEEP_BRANCH = BranchDrop()


def draw_drop_path(
    rate: float,
    depth: int,
    num_samples: int,
    rng: np.random.Generator,
    device: torch.device,
    *,
    rises: bool = False,
) -> DropPath:
    """One forward pass's draws at a uniform `rate`, or, where it `rises`, from 0 in the first block to it in
    the last, as DINO (arXiv 2104.14294) has it.

    A uniform rate above 0.1 runs exactly ⌊n (1 − rate)⌋ samples through a branch, whose residual is scaled
    by n / kept, as DINOv2 does: fewer FLOPs, fixed shapes. Else each sample keeps a branch independently.
    """
    if rate == 0 or num_samples == 0:
        return KEEP_ALL
    if is_subset(rate) and not rises:
        kept = kept_samples(rate, num_samples)
        order = rng.random((2 * depth, num_samples)).argsort(axis=1, kind="stable")[:, :kept]
        return DropPath(rows=to_device(np.ascontiguousarray(order), device))
    rates = np.linspace(0.0, rate, depth) if rises else np.full(depth, rate)
    by_branch = rates.repeat(2)[:, None]
    keep = rng.random((2 * depth, num_samples)) >= by_branch
    factors = (keep / (1 - by_branch)).astype(np.float32)
    return DropPath(factors=to_device(factors, device))


def is_subset(rate: float) -> bool:
    """Whether a branch is computed for the samples that keep it alone."""
    return rate > _SUBSET_ABOVE


def kept_samples(rate: float, num_samples: int) -> int:
    """How many of `num_samples` run a branch in subset mode."""
    return max(int(num_samples * (1 - rate)), 1)


def pack_drops(drops: Sequence[DropPath], layout: Layout, num_branches: int) -> list[BranchDrop]:
    """Each branch's `BranchDrop` over the packed tokens of all sizes; `drops` has one entry a size."""
    if any(drop.rows is not None for drop in drops):
        return _pack_rows(drops, layout, num_branches)
    if any(drop.factors is not None for drop in drops):
        return _pack_factors(drops, layout, num_branches)
    return [KEEP_BRANCH] * num_branches


def _pack_rows(drops: Sequence[DropPath], layout: Layout, num_branches: int) -> list[BranchDrop]:
    places, scales, kept_layout, start = [], [], [], 0
    for drop, (num, tokens) in zip(drops, layout, strict=True):
        assert drop.rows is not None, "crops of all sizes are dropped by one rule"
        kept = drop.rows.shape[1]
        within = torch.arange(start, start + tokens, device=drop.rows.device)
        places.append((drop.rows[:, :, None] * tokens + within).flatten(1))
        scales.append(torch.full((kept * tokens, 1), num / kept, device=drop.rows.device))
        kept_layout.append((kept, tokens))
        start += num * tokens
    scale, kept_all = torch.cat(scales), tuple(kept_layout)
    return [BranchDrop(place, scale, kept_all) for place in torch.cat(places, dim=1).unbind(0)[:num_branches]]


def _pack_factors(drops: Sequence[DropPath], layout: Layout, num_branches: int) -> list[BranchDrop]:
    parts = []
    for drop, (_, tokens) in zip(drops, layout, strict=True):
        assert drop.factors is not None, "crops of all sizes are dropped by one rule"
        parts.append(drop.factors.repeat_interleave(tokens, dim=1))
    return [BranchDrop(scale=scale[:, None]) for scale in torch.cat(parts, dim=1).unbind(0)[:num_branches]]
