"""A rectangle of one level, put together from its tiles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from eosin.slides.model import Level

Pixels = npt.NDArray[np.uint8]
WHITE = 255


def tiles_of_region(level: Level, x_px: int, y_px: int, w: int, h: int) -> list[int]:
    """Row-major indices, within the level, of the tiles under a rectangle in the level's own pixels."""
    x0, x1 = max(0, x_px), min(level.width_px, x_px + w)
    y0, y1 = max(0, y_px), min(level.height_px, y_px + h)
    if x0 >= x1 or y0 >= y1:
        return []
    columns = range(x0 // level.tile_width_px, (x1 - 1) // level.tile_width_px + 1)
    rows = range(y0 // level.tile_height_px, (y1 - 1) // level.tile_height_px + 1)
    return [row * level.num_tiles_x + column for row in rows for column in columns]


def assemble_region(
    level: Level, x_px: int, y_px: int, w: int, h: int, get_tile: Callable[[int], Pixels | None]
) -> Pixels:
    """[h, w, 3] uint8 of the rectangle at (`x_px`, `y_px`) in this level's own pixels.

    `get_tile` returns the full-size pixels [tile_height, tile_width, 3] of a tile by its row-major
    index within the level, or None for an empty one. What lies outside the level, and empty tiles,
    is white.
    """
    region = np.full((h, w, 3), WHITE, np.uint8)
    for index in tiles_of_region(level, x_px, y_px, w, h):
        pixels = get_tile(index)
        if pixels is not None:
            _paste(region, pixels, level, index, x_px, y_px)
    return region


def _paste(region: Pixels, tile: Pixels, level: Level, index: int, x_px: int, y_px: int) -> None:
    """Copy the part of a tile that lies in the region and in the level."""
    row, column = divmod(index, level.num_tiles_x)
    tile_x_px, tile_y_px = column * level.tile_width_px, row * level.tile_height_px
    x0, y0 = max(x_px, tile_x_px), max(y_px, tile_y_px)
    x1 = min(x_px + region.shape[1], tile_x_px + tile.shape[1], level.width_px)
    y1 = min(y_px + region.shape[0], tile_y_px + tile.shape[0], level.height_px)
    region[y0 - y_px : y1 - y_px, x0 - x_px : x1 - x_px] = tile[
        y0 - tile_y_px : y1 - tile_y_px, x0 - tile_x_px : x1 - tile_x_px
    ]
