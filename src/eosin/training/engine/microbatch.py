"""Microbatches: crops, masks and drop path of a part of one step's batch, whatever the world size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eosin.config import RunConfig
from eosin.models.drop_path import KEEP_ALL, DropPath, draw_drop_path
from eosin.models.transfer import to_device
from eosin.training.engine.masks import Masked, draw_masks, find_masked

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

    def __post_init__(self) -> None:
        if self.masks is not None and self.masked is None:
            found = find_masked(self.masks.cpu().numpy(), self.masks.device)
            object.__setattr__(self, "masked", found)


def microbatch_indices(microbatch: int, microbatch_size: int) -> range:
    """Sample indices of a microbatch within its step's batch."""
    return range(microbatch * microbatch_size, (microbatch + 1) * microbatch_size)


def batch_indices(microbatches: Sequence[int], microbatch_size: int) -> list[int]:
    """Sample indices of several microbatches, in microbatch order."""
    return [index for microbatch in microbatches for index in microbatch_indices(microbatch, microbatch_size)]


def blank_microbatch(config: RunConfig, patch_size: int, device: torch.device) -> Microbatch:
    """A microbatch of black patches with nothing masked, for a rank that has no microbatch to run."""
    size, augment = config.train.microbatch_size, config.augment
    masks = np.zeros((2 * size, (augment.global_px // patch_size) ** 2), dtype=bool)
    uses_ibot = config.train.uses_ibot
    return Microbatch(
        torch.zeros(2, size, 3, augment.global_px, augment.global_px, device=device),
        torch.zeros(augment.num_local, size, 3, augment.local_px, augment.local_px, device=device),
        to_device(masks, device) if uses_ibot else None,
        masked=find_masked(masks, device) if uses_ibot else None,
    )


class MicrobatchMaker:
    """Adds what is drawn for a microbatch together: masks and drop path, pure in (seed, step, microbatch)."""

    def __init__(self, config: RunConfig, *, grid: int, depth: int, device: torch.device) -> None:
        """`grid`: patches along a side of a global crop; `depth`: blocks of the backbone."""
        self._config = config
        self._grid = grid
        self._depth = depth
        self._device = device

    def make(self, step: int, microbatch: int, global_crops: Tensor, local_crops: Tensor) -> Microbatch:
        """The microbatch of `global_crops` [2, n, 3, G, G] and `local_crops` [num_local, n, 3, L, L]."""
        drops = self._rng(_DROP_PATH, step, microbatch)
        masks, masked = self._masks(step, microbatch, 2 * global_crops.shape[1])
        global_drop = self._drop_path(2 * global_crops.shape[1], drops)
        local_drop = self._drop_path(local_crops.shape[0] * local_crops.shape[1], drops)
        return Microbatch(global_crops, local_crops, masks, global_drop, local_drop, masked)

    def _drop_path(self, num_crops: int, rng: np.random.Generator) -> DropPath:
        model = self._config.model
        return draw_drop_path(
            model.drop_path, self._depth, num_crops, rng, self._device, rises=model.drop_path_rises
        )

    def _masks(self, step: int, microbatch: int, num_crops: int) -> tuple[Tensor | None, Masked | None]:
        if not self._config.train.uses_ibot:
            return None, None
        masks = draw_masks(
            self._config.train.ibot, num_crops, self._grid, self._rng(_MASKS, step, microbatch)
        )
        return to_device(masks, self._device), find_masked(masks, self._device)

    def _rng(self, purpose: int, step: int, microbatch: int) -> np.random.Generator:
        return np.random.default_rng([self._config.seed, purpose, step, microbatch])
