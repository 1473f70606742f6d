"""The read plan of a patch: which tiles, at which scale, and how their pixels become the patch."""

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from eosin.patches.geometry import Box, box_of
from eosin.patches.request import PatchRequest
from eosin.slides.decode import shrink
from eosin.slides.model import Level, SlideHeader
from eosin.slides.region import TilePart, parts_of_region, to_level

Pixels = npt.NDArray[np.uint8]


class TileKey(NamedTuple):
    """A tile of one slide (a row of the snapshot), decoded at 1 / `denominator` of its size."""

    slide: int
    level: int
    tile: int
    denominator: int


class ReadPlan(NamedTuple):
    """How a patch is put together. `box` is in the frame of `level` at 1 / `denominator`."""

    box: Box
    level: Level
    denominator: int
    tiles: list[TileKey]
    """The tiles under the box, row by row."""
    parts: list[TilePart]
    """What each of them gives to it."""


def plan_read(
    request: PatchRequest, header: SlideHeader, patch_px: int, tolerance: float, max_denominator: int = 8
) -> ReadPlan:
    """How to read `request` from tiles: from the best level, JPEG scaled down while it is decoded.

    A JPEG tile decoded at 1/2, 1/4 or 1/8 costs a fraction of the whole; it is done where the scaled
    level is still at least as fine as the patch, up to 1 / `max_denominator`.
    """
    box = box_of(request, header, patch_px, tolerance)
    level = header.levels[box.level]
    factor = min(box.width_px, box.height_px) / patch_px
    denominator = _denominator(level, min(factor, max_denominator))
    view = level
    if denominator > 1:
        view = _at_scale(level, denominator)
        box = _scaled(box, view, denominator)
    parts = parts_of_region(view, box.x_px, box.y_px, box.width_px, box.height_px)
    tiles = [TileKey(request.slide, box.level, part.tile, denominator) for part in parts]
    return ReadPlan(box, level, denominator, tiles, parts)


@lru_cache(maxsize=1024)
def _at_scale(level: Level, denominator: int) -> Level:
    """The level as its tiles are when they are decoded at 1 / `denominator`."""
    return replace(
        level,
        width_px=-(-level.width_px // denominator),
        height_px=-(-level.height_px // denominator),
        downsample=level.downsample * denominator,
        tile_width_px=level.tile_width_px // denominator,
        tile_height_px=level.tile_height_px // denominator,
    )


def resize(region: Pixels, patch: Pixels) -> None:
    """Write `region` into `patch` [side, side, 3]: area averaging down, linear interpolation up."""
    if region.shape == patch.shape:
        patch[:] = region
        return
    height, width = patch.shape[:2]
    if region.shape[0] >= height and region.shape[1] >= width:
        shrink(region, patch)
    else:
        method = cv2.INTER_AREA if min(region.shape[:2]) >= min(height, width) else cv2.INTER_LINEAR
        cv2.resize(region, (width, height), dst=patch, interpolation=method)


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
