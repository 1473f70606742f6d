"""Regions of one level: the tiles under them, their bytes in one batch, and what stands for absent ones."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from eosin.slides.dicom_frames import joined
from eosin.slides.errors import SlideError, absent_or_changed
from eosin.slides.model import Level, SlideHeader, TileTable
from eosin.storage import ByteRange, NotFound, ObjectChanged, RangedObjects

Pixels = npt.NDArray[np.uint8]
WHITE = 255


class TilePart(NamedTuple):
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


def parts_of_region(level: Level, x_px: int, y_px: int, w: int, h: int) -> list[TilePart]:
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
            parts.append(
                TilePart(row * num_columns + column, left - column * tile_w, top - row * tile_h,
                         left - x_px, top - y_px, width, height)
            )  # fmt: skip
    return parts


def to_level(position_px: int, downsample: float) -> int:
    """The nearest pixel of a level to a level-0 position."""
    return math.floor(position_px / downsample + 0.5)


def fetch_tiles(
    store: RangedObjects, header: SlideHeader, rows: TileTable, wanted: list[int]
) -> dict[int, bytes]:
    """Bytes of the `wanted` tiles by index within `rows` (empty: an empty tile), in one batched read.

    `rows` is the tile table, or a level's part of it. Raises `SlideError` (`changed`, `missing`,
    `corrupt-tile`).
    """
    ranges = []
    for index in wanted:
        offset, size_bytes, which = rows[index].tolist()
        stored = header.objects[which]
        ranges.append(ByteRange(stored.key, offset, size_bytes, stored.etag))
    filled = [i for i, each in enumerate(ranges) if each.length]
    try:
        data = store.get_ranges([ranges[i] for i in filled])
    except (ObjectChanged, NotFound) as error:
        raise absent_or_changed(header.objects[0].key, error) from error
    found = dict.fromkeys(wanted, b"")
    for i, part in zip(filled, data, strict=True):
        if len(part) != ranges[i].length:
            raise SlideError("corrupt-tile", f"tile {wanted[i]} ends early in {ranges[i].key}")
        found[wanted[i]] = joined(part) if header.format == "dicom" else part
    return found


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


def is_tile_size(level: Level, width_px: int, height_px: int) -> bool:
    """Whether a tile of `level` may hold so many pixels.

    It may end where the level does, halved as often as wsidicom halves the tiles of levels that it makes.
    """
    sides = (
        (width_px, level.tile_width_px, level.width_px),
        (height_px, level.tile_height_px, level.height_px),
    )
    return all(
        side == tile or (side > 0 and not tile % side and 0 < whole % tile <= side)
        for side, tile, whole in sides
    )


def whole_tile(level: Level, pixels: Pixels, scale_denominator: int = 1) -> Pixels:
    """`pixels` [h, w, 3] of a tile scaled by 1 / `scale_denominator`, with white where it ends early."""
    sides = (level.tile_height_px, level.tile_width_px)
    lacking = [-(-side // scale_denominator) - num for side, num in zip(sides, pixels.shape, strict=False)]
    if not any(lacking):
        return pixels
    return np.pad(pixels, [(0, lacking[0]), (0, lacking[1]), (0, 0)], constant_values=WHITE)
