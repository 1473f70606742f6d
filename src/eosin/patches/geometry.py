"""Geometry of a patch: the level that serves an mpp, and which of its pixels a patch covers."""

import math
from typing import NamedTuple

from eosin.patches.request import PatchRequest
from eosin.slides.model import SlideHeader
from eosin.slides.region import to_level

ROUNDING = 1.0 + 1e-6
"""By how much a level may be coarser than a limit and still meet it."""


class Box(NamedTuple):
    """A rectangle of whole pixels in one level's frame: origin at the level's top-left corner, y down."""

    level: int
    x_px: int
    y_px: int
    width_px: int
    height_px: int


def level_mpp(header: SlideHeader, level: int) -> float:
    """Resolution of a level in µm a pixel, of its coarser axis. The header must have an mpp."""
    assert header.mpp_x is not None and header.mpp_y is not None
    return max(header.mpp_x, header.mpp_y) * header.levels[level].downsample


def best_level(header: SlideHeader, mpp: float, tolerance: float) -> int | None:
    """The coarsest level that still shows `mpp`: at most `tolerance` (a share) coarser; None if none does."""
    best, coarsest, limit = None, 0.0, mpp * (1.0 + tolerance) * ROUNDING
    for number, level in enumerate(header.levels):
        if level.downsample > coarsest and level_mpp(header, number) <= limit:
            best, coarsest = number, level.downsample
    return best


def extent_px(header: SlideHeader, patch_px: int, mpp: float) -> tuple[float, float]:
    """Width and height of a patch in level-0 pixels: real numbers, unequal where mpp_x and mpp_y differ."""
    assert header.mpp_x is not None and header.mpp_y is not None
    return patch_px * mpp / header.mpp_x, patch_px * mpp / header.mpp_y


def fits(header: SlideHeader, patch_px: int, mpp: float) -> bool:
    """Whether some position puts the whole patch inside the slide."""
    width_px, height_px = extent_px(header, patch_px, mpp)
    finest = header.levels[0]
    return math.ceil(width_px) <= finest.width_px and math.ceil(height_px) <= finest.height_px


def box_of(request: PatchRequest, header: SlideHeader, patch_px: int, tolerance: float) -> Box:
    """The pixels to read for `request`: the nearest whole pixels of the level that serves it.

    The box lies inside the level. Its origin is off by at most half a pixel of that level.
    """
    number = best_level(header, request.mpp, tolerance)
    assert number is not None, "the sampler draws only what a level serves"
    level = header.levels[number]
    width_px, height_px = extent_px(header, patch_px, request.mpp)
    width = min(max(1, round(width_px / level.downsample)), level.width_px)
    height = min(max(1, round(height_px / level.downsample)), level.height_px)
    x = min(to_level(request.x_px, level.downsample), level.width_px - width)
    y = min(to_level(request.y_px, level.downsample), level.height_px - height)
    return Box(number, x, y, width, height)
