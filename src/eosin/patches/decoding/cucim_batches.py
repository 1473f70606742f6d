"""In a decoder's process: regions of staged slides by cuCIM, those of one size and level in one call."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eosin.patches.decoding.process import Pixels
from eosin.slides.errors import SlideError

if TYPE_CHECKING:
    from eosin.patches.decoding.isolated import Region

_NUM_WORKERS = 4


class CucimBatches:
    """A `Worker`. Keeps the slide open that was read last."""

    def __init__(self, load: Callable[[str], Any], device: int | None) -> None:
        """`load`: cuCIM's CuImage. `device`: the GPU that decodes and on which pixels stay, as tensors
        (untested); None: a CPU, and arrays."""
        self._load = load
        self._device = device
        self._path = ""
        self._image: Any = None

    def work(self, regions: Sequence[Region]) -> list[Pixels | SlideError]:
        """Pixels of each region, which are all of one slide."""
        found: dict[int, Any] = {}
        groups: OrderedDict[tuple[int, int, int], list[int]] = OrderedDict()
        for place, region in enumerate(regions):
            box = region.box
            groups.setdefault((box.level, box.width_px, box.height_px), []).append(place)
        for (level, width_px, height_px), places in groups.items():
            try:
                image = self._slide(str(regions[places[0]].path))
                corners = [_corner(regions[place]) for place in places]
                pixels = self._read(image, corners, (width_px, height_px), level)
            except (RuntimeError, ValueError) as error:
                found |= dict.fromkeys(places, SlideError("corrupt-tile", f"cuCIM cannot read: {error}"))
            else:
                found |= dict(zip(places, pixels, strict=True))
        return [found[place] for place in range(len(regions))]

    def rest(self) -> None:
        """Let go of the slide."""
        self._image, self._path = None, ""

    def _slide(self, path: str) -> Any:
        if path != self._path:
            self._image, self._path = self._load(path), path
        return self._image

    def _read(self, image: Any, corners: list[tuple[int, int]], size: tuple[int, int], level: int) -> Any:
        """uint8 [n, h, w, 3] of the regions, in order."""
        device = "cpu" if self._device is None else "cuda"
        if len(corners) == 1:
            region = image.read_region(corners[0], size, level=level, device=device)
            return self._pixels(region)[None]
        batches = image.read_region(
            [value for corner in corners for value in corner], size, level=level, device=device,
            batch_size=len(corners), num_workers=_NUM_WORKERS,
        )  # fmt: skip
        (pixels,) = (self._pixels(batch) for batch in batches)
        return pixels

    def _pixels(self, image: Any) -> Any:
        if self._device is None:
            return np.ascontiguousarray(np.asarray(image)[..., :3])
        import torch

        return torch.as_tensor(image, device=f"cuda:{self._device}")[..., :3].contiguous()


def _corner(region: Region) -> tuple[int, int]:
    """cuCIM cuts the level-0 corner down to a pixel of the level: rounded up, it comes back as asked."""
    down = region.header.levels[region.box.level].downsample
    return math.ceil(region.box.x_px * down), math.ceil(region.box.y_px * down)
