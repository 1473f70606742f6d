"""A rectangle of one level, put together from its tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eosin.slides.model import Level

Pixels = npt.NDArray[np.uint8]
WHITE = 255


class Part(NamedTuple):
    """What one tile gives to a rectangle: `width_px` × `height_px` pixels."""

    tile: int
    """Row-major index within the level."""
    x_px: int
    y_px: int
    """Their corner in the tile."""
    left_px: int
    top_px: int
    """Their corner in the rectangle."""
    width_px: int
    height_px: int

    def of_tile(self, pixels: Pixels) -> Pixels:
        """The pixels in the tile, a view."""
        return pixels[self.y_px : self.y_px + self.height_px, self.x_px : self.x_px + self.width_px]

    def of_region(self, pixels: Pixels) -> Pixels:
        """Their place in the rectangle, a view."""
        return pixels[self.top_px : self.top_px + self.height_px, self.left_px : self.left_px + self.width_px]


def parts_of_region(level: Level, x_px: int, y_px: int, w: int, h: int) -> list[Part]:
    """The parts that cover what of a rectangle, in the level's own pixels, lies in the level; row-major."""
    x0, x1 = max(0, x_px), min(level.width_px, x_px + w)
    y0, y1 = max(0, y_px), min(level.height_px, y_px + h)
    if x0 >= x1 or y0 >= y1:
        return []
    tile_w, tile_h, num_columns = level.tile_width_px, level.tile_height_px, level.num_tiles_x
    parts = []
    for row in range(y0 // tile_h, (y1 - 1) // tile_h + 1):
        top = max(y0, row * tile_h)
        height = min(y1, (row + 1) * tile_h) - top
        for column in range(x0 // tile_w, (x1 - 1) // tile_w + 1):
            left = max(x0, column * tile_w)
            width = min(x1, (column + 1) * tile_w) - left
            corner = (left - column * tile_w, top - row * tile_h, left - x_px, top - y_px)
            parts.append(Part(row * num_columns + column, *corner, width, height))
    return parts


def tiles_of_region(level: Level, x_px: int, y_px: int, w: int, h: int) -> list[int]:
    """Row-major indices, within the level, of the tiles under a rectangle in the level's own pixels."""
    return [part.tile for part in parts_of_region(level, x_px, y_px, w, h)]


def assemble_region(
    level: Level, x_px: int, y_px: int, w: int, h: int, get_tile: Callable[[int], Pixels | None]
) -> Pixels:
    """[h, w, 3] uint8 of the rectangle at (`x_px`, `y_px`) in this level's own pixels.

    `get_tile` returns the full-size pixels [tile_height, tile_width, 3] of a tile by its row-major
    index within the level, or None for an empty one. What lies outside the level, and empty tiles,
    is white.
    """
    region = np.full((h, w, 3), WHITE, np.uint8)
    for part in parts_of_region(level, x_px, y_px, w, h):
        pixels = get_tile(part.tile)
        if pixels is not None:
            part.of_region(region)[:] = part.of_tile(pixels)
    return region
