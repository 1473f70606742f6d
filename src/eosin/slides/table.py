"""The tile table: where the bytes of every tile of every level lie."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.slides.errors import SlideError
from eosin.slides.model import TILE_DTYPE, Level, SlideHeader, TileTable

MAX_TILE_BYTES = 256 * 2**20
MAX_TILE_PIXELS = 4096 * 4096
MAX_LEVEL_TILES = 8 * 2**20


def make_table(offsets: npt.NDArray[Any], sizes: npt.NDArray[Any]) -> TileTable:
    """A table of `TILE_DTYPE` from offsets and sizes in bytes; a tile of no size has no offset either.

    Raises `SlideError` (`corrupt-header`) where a size is negative or no tile could have it.
    """
    if len(offsets) != len(sizes):
        raise SlideError("corrupt-header", f"it has {len(offsets)} tile offsets, {len(sizes)} tile sizes")
    wrong = (sizes.astype(np.float64) < 0) | (sizes.astype(np.float64) > MAX_TILE_BYTES)
    if wrong.any() or (offsets.astype(np.float64) < 0).any():
        raise SlideError("corrupt-header", f"{max(int(wrong.sum()), 1)} of its tiles have impossible sizes")
    table = np.zeros(len(offsets), TILE_DTYPE)
    filled = sizes != 0
    table["offset"] = np.where(filled, offsets, 0)
    table["size_bytes"] = sizes
    return table


def check_grid(width_px: int, height_px: int, tile_width_px: int, tile_height_px: int) -> None:
    """Refuse level and tile sizes no scanner writes. Raises `SlideError`."""
    if min(width_px, height_px, tile_width_px, tile_height_px) <= 0:
        raise SlideError("corrupt-header", f"a level is {width_px} × {height_px} px")
    if tile_width_px * tile_height_px > MAX_TILE_PIXELS:
        raise SlideError("unsupported-layout", f"its tiles are {tile_width_px} × {tile_height_px} px")
    if -(-width_px // tile_width_px) * -(-height_px // tile_height_px) > MAX_LEVEL_TILES:
        raise SlideError("corrupt-header", f"a level of {width_px} × {height_px} px has too many tiles")


def same_shape(finest: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether (width, height) of a level has the aspect of the finest, to 5 % or to two pixels."""
    (width, height), (w, h) = finest, other
    return abs(width * h - height * w) <= max(0.05 * height * w, 2 * max(width, height))


def check_total(num_tiles: int) -> None:
    """Refuse a slide whose levels together would not fit memory. Raises `SlideError`."""
    if num_tiles > 2 * MAX_LEVEL_TILES:
        raise SlideError("corrupt-header", f"its levels announce {num_tiles} tiles")


def check_table(header: SlideHeader, table: TileTable) -> None:
    """Every tile lies inside its object. Raises `SlideError` (`tile-out-of-range`) naming the first.

    Levels must cover the table exactly, in order.
    """
    if header.access == "local":
        return
    if sum(level.num_tiles for level in header.levels) != len(table):
        raise SlideError("corrupt-header", f"its levels do not add up to its {len(table)} tiles")
    if len(table) and int(table["object"].max()) >= len(header.objects):
        raise SlideError("corrupt-header", "a tile names an object the slide does not have")
    ends = np.array([each.size_bytes for each in header.objects], np.uint64)
    for number, level in enumerate(header.levels):
        _check_level(number, level, level_table(level, table), ends, header)


def level_table(level: Level, table: TileTable) -> TileTable:
    """The rows of one level, row-major, as a view."""
    return table[level.first_tile : level.first_tile + level.num_tiles]


def _check_level(
    number: int, level: Level, rows: TileTable, ends: npt.NDArray[np.uint64], header: SlideHeader
) -> None:
    out = rows["offset"] > ends[rows["object"]]
    with np.errstate(over="ignore"):
        out |= rows["offset"] + rows["size_bytes"] > ends[rows["object"]]
    if out.any():
        first = int(np.argmax(out))
        offset, size_bytes, which = rows[first].tolist()
        raise SlideError(
            "tile-out-of-range",
            f"{int(out.sum())} of {len(rows)} tiles of level {number} lie past the end: tile {first} is at"
            f" bytes {offset} to {offset + size_bytes}, the object has {header.objects[which].size_bytes}",
        )
    if len(rows) and not rows["size_bytes"].any():
        raise SlideError("corrupt-header", f"all {level.num_tiles} tiles of level {number} are empty")


def row_major(table: TileTable, stored_x: int, num_x: int, num_y: int) -> TileTable:
    """The first `num_x` × `num_y` tiles of a stored grid `stored_x` tiles wide."""
    return np.ascontiguousarray(table.reshape(-1, stored_x)[:num_y, :num_x]).reshape(-1)


def concatenate(tables: Sequence[TileTable]) -> TileTable:
    """One table of several levels, in order; empty for none."""
    return np.concatenate(tables) if tables else np.zeros(0, TILE_DTYPE)
