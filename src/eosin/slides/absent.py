"""Absent tiles of a level, made from the next finer one, as OpenSlide makes them.

Scanners leave tiles of coarser levels at zero bytes where they were interrupted, or to save room; their place
is not empty as long as a finer level shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from eosin.slides.model import SlideHeader
from eosin.slides.region import WHITE, parts_of_region

Pixels = npt.NDArray[np.uint8]
LoadTiles = Callable[[int, Sequence[int]], dict[int, Pixels | None]]


def tile_from_finer(header: SlideHeader, number: int, tile: int, load: LoadTiles) -> Pixels | None:
    """[tile_height, tile_width, 3] of tile `tile` of level `number` from the level before it; None where that
    shows nothing there either, or there is none.

    `load(level, tiles)` gives the whole tiles of a level, None for those that are absent; it may come back
    here for them. What lies outside the slide is white.
    """
    if number == 0:
        return None
    level, finer = header.levels[number], header.levels[number - 1]
    scale = level.downsample / finer.downsample
    row, column = divmod(tile, level.num_tiles_x)
    x, y = round(column * level.tile_width_px * scale), round(row * level.tile_height_px * scale)
    width, height = round(level.tile_width_px * scale), round(level.tile_height_px * scale)
    parts = parts_of_region(finer, x, y, width, height)
    tiles = load(number - 1, [part.tile for part in parts])
    if all(tiles[part.tile] is None for part in parts):
        return None
    region = np.full((height, width, 3), WHITE, np.uint8)
    for part in parts:
        pixels = tiles[part.tile]
        if pixels is not None:
            part.of_region(region)[:] = part.of_tile(pixels)
    size = (level.tile_width_px, level.tile_height_px)
    return np.asarray(cv2.resize(region, size, interpolation=cv2.INTER_AREA), np.uint8)
