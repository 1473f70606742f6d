"""Partial decoding of JPEG tiles: a rectangle, without the rest of the tile where that can be done.

A random patch of 224 px needs half of the pixels of its 240 px tiles. The compiled module that leaves out
the others is optional: without it, and for tiles that are not plain JPEG, the whole tile is decoded, and
the pixels are the same.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from eosin.slides.decode import decode_tile
from eosin.slides.jpeg import table_segments
from eosin.slides.model import Level

try:
    from eosin.slides import _jpeg_part
except ImportError:
    _jpeg_part = None  # type: ignore[assignment]  # where it was not built


def decodes_parts() -> bool:
    """Whether the compiled module is there."""
    return _jpeg_part is not None


def decode_part(
    level: Level, data: bytes, scale_denominator: int, x_px: int, y_px: int, out: npt.NDArray[np.uint8]
) -> None:
    """Write the rectangle of the size of `out` [h, w, 3] at (`x_px`, `y_px`) of a tile into `out`.

    Position and size are pixels of the tile scaled by 1 / `scale_denominator`, as `decode_tile` scales it;
    the rectangle lies in the tile. Raises `SlideError` (`corrupt-tile`) as `decode_tile` does, except that
    damage behind the rectangle may go unseen.
    """
    if _jpeg_part is not None and level.compression == "jpeg":
        head, is_rgb = _head(level.jpeg_tables), level.color_space == "rgb"
        width_px, height_px = level.tile_width_px, level.tile_height_px
        if _jpeg_part.decode_part(
            head, data, is_rgb, width_px, height_px, scale_denominator, x_px, y_px, out
        ):
            return
    height, width = out.shape[:2]
    out[:] = decode_tile(level, data, scale_denominator)[y_px : y_px + height, x_px : x_px + width]


@lru_cache(maxsize=256)
def _head(tables: bytes | None) -> bytes:
    """What takes the place of a tile's first marker: the marker and the shared tables."""
    return b"\xff\xd8" + table_segments(tables)
