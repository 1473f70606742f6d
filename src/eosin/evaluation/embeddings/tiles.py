"""Large images cut into what a model sees at once, each pixel in one tile."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eosin.evaluation.datasets.masks import IGNORE, Classes

TILES_VERSION = 1
_WHITE = 255

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Tile:
    """A square of sample `row`: its corner, and where the part of it that no earlier tile has begins.

    All in pixels of the image, x to the right and y down.
    """

    row: int
    x_px: int
    y_px: int
    own_x_px: int
    own_y_px: int


def grid(row: int, width_px: int, height_px: int, side_px: int) -> list[Tile]:
    """Tiles over the whole image at its own scale; the last of a row or column is moved inward to fit."""
    return [
        Tile(row, x, y, own_x, own_y)
        for y, own_y in _starts(height_px, side_px)
        for x, own_x in _starts(width_px, side_px)
    ]


def _starts(length_px: int, side_px: int) -> list[tuple[int, int]]:
    wanted = range(0, length_px, side_px)
    return [(max(0, min(start, length_px - side_px)), start) for start in wanted]


def cut(image: Pixels, classes: Classes, tile: Tile, side_px: int) -> tuple[Pixels, Classes]:
    """Pixels [side, side, 3] and classes [side, side] of a tile.

    What an earlier tile has already is `IGNORE`, so that no pixel counts twice; an image smaller than
    the tile is filled up with white that is `IGNORE` too.
    """
    y, x = tile.y_px, tile.x_px
    pixels = np.full((side_px, side_px, 3), _WHITE, dtype=np.uint8)
    labels = np.full((side_px, side_px), IGNORE, dtype=np.uint8)
    seen = image[y : y + side_px, x : x + side_px]
    pixels[: seen.shape[0], : seen.shape[1]] = seen
    own = classes[tile.own_y_px : y + side_px, tile.own_x_px : x + side_px]
    top, left = tile.own_y_px - y, tile.own_x_px - x
    labels[top : top + own.shape[0], left : left + own.shape[1]] = own
    return pixels, labels


def draw(tiles: Sequence[Tile], sources: Sequence[str], max_tiles: int) -> list[Tile]:
    """All tiles, or the `max_tiles` first by a stable hash, in their own order."""
    if len(tiles) <= max_tiles:
        return list(tiles)

    def rank(tile: Tile) -> str:
        return hashlib.sha256(f"{sources[tile.row]}\x1f{tile.x_px}\x1f{tile.y_px}".encode()).hexdigest()

    chosen = set(sorted(tiles, key=rank)[:max_tiles])
    return [tile for tile in tiles if tile in chosen]
