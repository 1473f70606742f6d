"""What must be read for a patch: which tiles, at which scale, and how pixels become the patch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from eosin.patches.geometry import Box, box_of
from eosin.patches.request import PatchRequest
from eosin.slides.model import Level, SlideHeader
from eosin.slides.reader import to_level
from eosin.slides.region import assemble_region, tiles_of_region

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TileKey:
    """A tile of one slide (a row of the snapshot), decoded at 1 / `denominator` of its size."""

    slide: int
    level: int
    tile: int
    denominator: int


@dataclass(frozen=True)
class Reading:
    """How a patch is put together. `box` and `view` are in the frame of the level at that scale."""

    request: PatchRequest
    box: Box
    view: Level
    denominator: int

    @property
    def tiles(self) -> list[TileKey]:
        box = self.box
        tiles = tiles_of_region(self.view, box.x_px, box.y_px, box.width_px, box.height_px)
        return [TileKey(self.request.slide, box.level, tile, self.denominator) for tile in tiles]

    def assemble(self, get_tile: Callable[[TileKey], Pixels | None], patch_px: int) -> Pixels:
        """The patch [patch_px, patch_px, 3]; `get_tile` gives None for a tile that holds nothing."""
        box = self.box

        def tile_at(tile: int) -> Pixels | None:
            return get_tile(TileKey(self.request.slide, box.level, tile, self.denominator))

        region = assemble_region(self.view, box.x_px, box.y_px, box.width_px, box.height_px, tile_at)
        return resize(region, patch_px)


def plan_reading(
    request: PatchRequest, header: SlideHeader, patch_px: int, tolerance: float, max_denominator: int = 8
) -> Reading:
    """How to read `request` from tiles: from the best level, JPEG scaled down while it is decoded.

    A JPEG tile decoded at 1/2, 1/4 or 1/8 costs a fraction of the whole; it is done where the scaled
    level is still at least as fine as the patch, up to 1 / `max_denominator`.
    """
    box = box_of(request, header, patch_px, tolerance)
    level = header.levels[box.level]
    factor = min(box.width_px, box.height_px) / patch_px
    denominator = _denominator(level, min(factor, max_denominator))
    if denominator == 1:
        return Reading(request, box, level, 1)
    view = replace(
        level,
        width_px=-(-level.width_px // denominator),
        height_px=-(-level.height_px // denominator),
        downsample=level.downsample * denominator,
        tile_width_px=level.tile_width_px // denominator,
        tile_height_px=level.tile_height_px // denominator,
    )
    return Reading(request, _scaled(box, view, denominator), view, denominator)


def resize(region: Pixels, patch_px: int) -> Pixels:
    """`region` as [patch_px, patch_px, 3]: area averaging down, linear interpolation up."""
    if region.shape[:2] == (patch_px, patch_px):
        return region
    shrinks = min(region.shape[:2]) >= patch_px
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized: Pixels = cv2.resize(region, (patch_px, patch_px), interpolation=method)
    return resized


def _denominator(level: Level, factor: float) -> int:
    """The largest scale that leaves at least the patch's resolution and keeps the tile grid whole."""
    if level.compression != "jpeg":
        return 1
    for denominator in (8, 4, 2):
        whole = level.tile_width_px % denominator == 0 and level.tile_height_px % denominator == 0
        if denominator <= factor and whole:
            return denominator
    return 1


def _scaled(box: Box, view: Level, denominator: int) -> Box:
    width = min(max(1, round(box.width_px / denominator)), view.width_px)
    height = min(max(1, round(box.height_px / denominator)), view.height_px)
    x = min(to_level(box.x_px, denominator), view.width_px - width)
    y = min(to_level(box.y_px, denominator), view.height_px - height)
    return Box(box.level, x, y, width, height)
