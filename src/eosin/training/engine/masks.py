"""iBOT's block masks: rectangles, completed to an exact count, so that shapes never change."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.config.train import IbotConfig

_MIN_BLOCK_PATCHES = 4
_MIN_ASPECT = 0.3
_ATTEMPTS = 10

Mask = npt.NDArray[np.bool_]


def mask_counts(config: IbotConfig, num_crops: int, num_patches: int) -> list[int]:
    """How many patches of each masked crop are hidden, for one micro-batch of `num_crops` crops.

    The ratio range is cut into as many strata as there are masked crops, and each takes its stratum's
    middle: DINOv2 draws within the stratum, which changes the count from step to step.
    """
    num_masked = int(num_crops * config.mask_probability)
    low, high = config.mask_ratio
    width = (high - low) / max(num_masked, 1)
    return [int(num_patches * (low + width * (i + 0.5))) for i in range(num_masked)]


def draw_masks(config: IbotConfig, num_crops: int, grid: int, rng: np.random.Generator) -> Mask:
    """bool [num_crops, grid²], row-major; the total number of True is the same for every draw."""
    masks = np.zeros((num_crops, grid, grid), dtype=bool)
    counts = mask_counts(config, num_crops, grid * grid)
    for crop, count in zip(rng.permutation(num_crops), counts, strict=False):
        masks[crop] = draw_mask(count, grid, rng)
    return masks.reshape(num_crops, -1)


class Masked(NamedTuple):
    """Where the hidden patches of a micro-batch are, so that no device has to count them."""

    places: Tensor
    """int64 [masked]: crop × patches + patch, ascending."""
    crops: Tensor
    """int64 [masked]: which crop each is of."""
    weights: Tensor
    """float32 [masked]: 1 / the number of hidden patches of its crop."""


def find_masked(masks: Mask, device: torch.device) -> Masked:
    """The True entries of `masks` [crops, patches]."""
    crops, patches = np.nonzero(masks)
    weights = (1.0 / masks.sum(1).clip(min=1))[crops].astype(np.float32)
    arrays = (crops * masks.shape[1] + patches, crops, weights)
    return Masked(*(torch.from_numpy(array).to(device, non_blocking=True) for array in arrays))


def draw_mask(count: int, grid: int, rng: np.random.Generator) -> Mask:
    """bool [grid, grid] with exactly `count` True: blocks first (as BEiT), then single patches."""
    mask = np.zeros((grid, grid), dtype=bool)
    missing = count
    while missing > 0 and _add_block(mask, missing, rng):
        missing = count - int(mask.sum())
    free = np.flatnonzero(~mask)
    mask.ravel()[rng.permutation(free)[:missing]] = True
    return mask


def _add_block(mask: Mask, most: int, rng: np.random.Generator) -> bool:
    """Add a rectangle that hides between 1 and `most` patches more; False if none was found."""
    grid = mask.shape[0]
    for _ in range(_ATTEMPTS):
        area = rng.uniform(_MIN_BLOCK_PATCHES, max(most, _MIN_BLOCK_PATCHES))
        aspect = math.exp(rng.uniform(math.log(_MIN_ASPECT), -math.log(_MIN_ASPECT)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height < grid and 0 < width < grid):
            continue
        top, left = rng.integers(0, grid - height + 1), rng.integers(0, grid - width + 1)
        block = mask[top : top + height, left : left + width]
        if 0 < block.size - int(block.sum()) <= most:
            block[:] = True
            return True
    return False
