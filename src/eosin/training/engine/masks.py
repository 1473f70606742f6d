"""iBOT's block masks: rectangles, completed to an exact count, so that shapes never change."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.config.train import IbotConfig
from eosin.models.transfer import to_device

_MIN_BLOCK_PATCHES = 4
_MIN_ASPECT = 0.3
_ATTEMPTS = 10

Mask = npt.NDArray[np.bool_]


def mask_counts(config: IbotConfig, num_crops: int, num_patches: int) -> list[int]:
    """How many patches of each masked crop are hidden, for one microbatch of `num_crops` crops.

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
    """Where the hidden patches of a microbatch are, so that no device has to count them."""

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
    return Masked(*(to_device(array, device) for array in arrays))


def draw_mask(count: int, grid: int, rng: np.random.Generator) -> Mask:
    """bool [grid, grid] with exactly `count` True: blocks first (as BEiT), then single patches."""
    numbers = _uniforms(rng)
    hidden = _draw_blocks(count, grid, numbers)
    packed = np.frombuffer(hidden.to_bytes(grid * grid // 8 + 1, "little"), np.uint8)
    mask = np.unpackbits(packed, count=grid * grid, bitorder="little").astype(bool)
    free = np.flatnonzero(~mask)
    mask[rng.permutation(free)[: count - hidden.bit_count()]] = True
    return mask.reshape(grid, grid)


def _uniforms(rng: np.random.Generator) -> Iterator[float]:
    """Numbers in [0, 1), many drawn at a time."""
    while True:
        yield from rng.random(64).tolist()


def _draw_blocks(most: int, grid: int, numbers: Iterator[float]) -> int:
    """Patches that rectangles hide, at most `most`; bit i is patch i, since a host draws these by the
    thousand while a GPU waits, and on integers that is several times as fast as on arrays."""
    hidden = 0
    while (missing := most - hidden.bit_count()) > 0:
        block = next((b for _ in range(_ATTEMPTS) if (b := _block(hidden, missing, grid, numbers))), 0)
        if not block:
            break
        hidden |= block
    return hidden


def _block(hidden: int, most: int, grid: int, numbers: Iterator[float]) -> int:
    """A rectangle that hides between 1 and `most` patches beside `hidden`; 0 if it would not."""
    area = _MIN_BLOCK_PATCHES + next(numbers) * max(most - _MIN_BLOCK_PATCHES, 0)
    aspect = math.exp((1.0 - 2.0 * next(numbers)) * math.log(_MIN_ASPECT))
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if not (0 < height < grid and 0 < width < grid):
        return 0
    top, left = int(next(numbers) * (grid - height + 1)), int(next(numbers) * (grid - width + 1))
    block = _rectangle(height, width, grid) << (top * grid + left)
    return block if 0 < (block & ~hidden).bit_count() <= most else 0


@cache
def _rectangle(height: int, width: int, grid: int) -> int:
    """Bits of a rectangle in the first corner."""
    return sum(((1 << width) - 1) << (row * grid) for row in range(height))
