"""Microbatches: crops, iBOT's block masks and drop path of a part of one step's batch, in any world.

Masks are rectangles, completed to an exact count, so that shapes never change.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.config import RunConfig
from eosin.config.train import IbotConfig, JepaConfig, TrainConfig
from eosin.models.device import to_device
from eosin.models.drop_path import KEEP_ALL, DropPath, draw_drop_path

_MIN_BLOCK_PATCHES = 4
_MIN_ASPECT = 0.3
_JEPA_MIN_ASPECT = 0.75
_ATTEMPTS = 10

Mask = npt.NDArray[np.bool_]
Masking = IbotConfig | JepaConfig


def mask_counts(config: Masking, num_crops: int, num_patches: int) -> list[int]:
    """How many patches of each masked crop are hidden, for one microbatch of `num_crops` crops.

    The ratio range is cut into as many strata as there are masked crops, and each takes its stratum's
    middle: DINOv2 draws within the stratum, which changes the count from step to step.
    """
    num_masked = int(num_crops * config.mask_probability)
    low, high = config.mask_ratio
    width = (high - low) / max(num_masked, 1)
    return [int(num_patches * (low + width * (i + 0.5))) for i in range(num_masked)]


def compared_counts(config: TrainConfig, num_crops: int, num_patches: int) -> list[int]:
    """How many patches of each global crop go through the patch head, for crops that have any."""
    if not (config.uses_ibot or config.uses_jepa):
        return []
    if not config.hides_patches:
        return [num_patches] * num_crops
    return mask_counts(config.masking, num_crops, num_patches)


def draw_masks(config: Masking, num_crops: int, grid: int, rng: np.random.Generator) -> Mask:
    """bool [num_crops, grid²], row-major; the total number of True is the same for every draw."""
    masks = np.zeros((num_crops, grid, grid), dtype=bool)
    counts = mask_counts(config, num_crops, grid * grid)
    scale = config.block_scale if isinstance(config, JepaConfig) else None
    for crop, count in zip(rng.permutation(num_crops), counts, strict=False):
        masks[crop] = draw_mask(count, grid, rng, scale)
    return masks.reshape(num_crops, -1)


class Masked(NamedTuple):
    """Where the patches of a microbatch are that the patch loss compares, so that no device has to count
    them: the hidden ones, or all where nothing is hidden from the student of a frozen teacher."""

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


def draw_mask(
    count: int, grid: int, rng: np.random.Generator, scale: tuple[float, float] | None = None
) -> Mask:
    """bool [grid, grid] with exactly `count` True: blocks first, then single patches.

    Blocks are of any size from four patches on (BEiT), or a share of the grid within `scale` (I-JEPA).
    """
    numbers = _uniforms(rng)
    hidden = _draw_blocks(count, grid, numbers, scale)
    packed = np.frombuffer(hidden.to_bytes(grid * grid // 8 + 1, "little"), np.uint8)
    mask = np.unpackbits(packed, count=grid * grid, bitorder="little").astype(bool)
    free = np.flatnonzero(~mask)
    mask[rng.permutation(free)[: count - hidden.bit_count()]] = True
    return mask.reshape(grid, grid)


def _uniforms(rng: np.random.Generator) -> Iterator[float]:
    """Numbers in [0, 1), many drawn at a time."""
    while True:
        yield from rng.random(64).tolist()


def _draw_blocks(most: int, grid: int, numbers: Iterator[float], scale: tuple[float, float] | None) -> int:
    """Patches that rectangles hide, at most `most`; bit i is patch i, since a host draws these by the
    thousand while a GPU waits, and on integers that is several times as fast as on arrays."""
    hidden = 0
    while (missing := most - hidden.bit_count()) > 0:
        blocks = (_block(hidden, missing, grid, numbers, scale) for _ in range(_ATTEMPTS))
        block = next(filter(None, blocks), 0)
        if not block:
            break
        hidden |= block
    return hidden


def _block(
    hidden: int, most: int, grid: int, numbers: Iterator[float], scale: tuple[float, float] | None
) -> int:
    """A rectangle that hides between 1 and `most` patches beside `hidden`; 0 if it would not."""
    if scale is None:
        area = _MIN_BLOCK_PATCHES + next(numbers) * max(most - _MIN_BLOCK_PATCHES, 0)
    else:
        area = min((scale[0] + next(numbers) * (scale[1] - scale[0])) * grid * grid, most)
    least = _MIN_ASPECT if scale is None else _JEPA_MIN_ASPECT
    aspect = math.exp((1.0 - 2.0 * next(numbers)) * math.log(least))
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


_MASKS, _DROP_PATH = 1, 2


@dataclass(frozen=True)
class Microbatch:
    """Views of n patches. `masks`: bool [2 n, patches], view-major, or None without iBOT."""

    global_crops: Tensor
    """[2, n, 3, G, G], normalised."""
    local_crops: Tensor
    """[num_local, n, 3, L, L]."""
    masks: Tensor | None = None
    global_drop: DropPath = KEEP_ALL
    local_drop: DropPath = KEEP_ALL
    masked: Masked | None = None
    """Where `masks` is True; found, at the price of a wait for the device, where it is not given."""
    clean_crops: Tensor | None = None
    """[2, n, 3, m G, m G]: the global crops for the Gram teacher, with colours as they are."""

    def __post_init__(self) -> None:
        if self.masks is not None and self.masked is None:
            found = find_masked(self.masks.cpu().numpy(), self.masks.device)
            object.__setattr__(self, "masked", found)


def batch_indices(microbatches: Sequence[int], microbatch_size: int) -> list[int]:
    """Sample indices of several microbatches within their step's batch, in microbatch order."""
    return [number * microbatch_size + i for number in microbatches for i in range(microbatch_size)]


def blank_microbatch(config: RunConfig, patch_size: int, device: torch.device) -> Microbatch:
    """A microbatch of black patches with nothing masked, for a rank that has no microbatch to run."""
    size, augment = config.train.microbatch_size, config.augment
    masks = np.zeros((2 * size, (augment.global_px // patch_size) ** 2), dtype=bool)
    masked = config.train.uses_ibot or config.train.uses_jepa
    clean_px = config.train.gram.crop_px(augment.global_px)
    return Microbatch(
        torch.zeros(2, size, 3, augment.global_px, augment.global_px, device=device),
        torch.zeros(augment.num_local, size, 3, augment.local_px, augment.local_px, device=device),
        to_device(masks, device) if masked else None,
        masked=find_masked(masks, device) if masked else None,
        clean_crops=torch.zeros(2, size, 3, clean_px, clean_px, device=device) if clean_px else None,
    )


class MicrobatchMaker:
    """Adds what is drawn for a microbatch together: masks and drop path, pure in (seed, step, microbatch)."""

    def __init__(self, config: RunConfig, *, patch_size: int, depth: int, device: torch.device) -> None:
        """`patch_size`: side of a patch of the backbone, px; `depth`: its blocks."""
        self._config = config
        self._patch_size = patch_size
        self._depth = depth
        self._device = device

    def make(
        self,
        step: int,
        microbatch: int,
        global_crops: Tensor,
        local_crops: Tensor,
        clean_crops: Tensor | None = None,
    ) -> Microbatch:
        """The microbatch of `global_crops` [2, n, 3, G, G] and `local_crops` [num_local, n, 3, L, L]."""
        drops = self._rng(_DROP_PATH, step, microbatch)
        grid = global_crops.shape[-1] // self._patch_size
        masks, masked = self._masks(step, microbatch, 2 * global_crops.shape[1], grid)
        global_drop = self._drop_path(2 * global_crops.shape[1], drops)
        local_drop = self._drop_path(local_crops.shape[0] * local_crops.shape[1], drops)
        return Microbatch(global_crops, local_crops, masks, global_drop, local_drop, masked, clean_crops)

    def _drop_path(self, num_crops: int, rng: np.random.Generator) -> DropPath:
        model = self._config.model
        return draw_drop_path(
            model.drop_path, self._depth, num_crops, rng, self._device, rises=model.drop_path_rises
        )

    def _masks(
        self, step: int, microbatch: int, num_crops: int, grid: int
    ) -> tuple[Tensor | None, Masked | None]:
        if not (self._config.train.uses_ibot or self._config.train.uses_jepa):
            return None, None
        if not self._config.train.hides_patches:
            hidden = np.zeros((num_crops, grid**2), dtype=bool)
            return to_device(hidden, self._device), find_masked(~hidden, self._device)
        masks = draw_masks(self._config.train.masking, num_crops, grid, self._rng(_MASKS, step, microbatch))
        return to_device(masks, self._device), find_masked(masks, self._device)

    def _rng(self, purpose: int, step: int, microbatch: int) -> np.random.Generator:
        return np.random.default_rng([self._config.seed, purpose, step, microbatch])
