"""The tile grid of a DICOM level: which tile each frame is."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from eosin.slides.errors import SlideError
from eosin.slides.model import TILE_DTYPE, TileTable


class Grid(Protocol):
    @property
    def width_px(self) -> int: ...

    @property
    def height_px(self) -> int: ...

    @property
    def tile_width_px(self) -> int: ...

    @property
    def tile_height_px(self) -> int: ...

    @property
    def frame_offset(self) -> int | None: ...


def place_frames(grid: Grid, frames: TileTable, groups: Any | None) -> TileTable:
    """The row-major table of the level; `groups` are the per-frame functional groups of TILED_SPARSE.

    TILED_FULL frames run row by row, plane after plane: the first plane is the level. Tiles without a
    frame stay empty. Raises `SlideError` for frames that are not on the grid.
    """
    num_x = -(-grid.width_px // grid.tile_width_px)
    num_y = -(-grid.height_px // grid.tile_height_px)
    table = np.zeros(num_x * num_y, TILE_DTYPE)
    if groups is not None:
        return _place_sparse(grid, frames, groups, table, num_x)
    first = grid.frame_offset or 0
    room = max(0, len(table) - first)
    if grid.frame_offset is None and len(frames) < len(table):
        raise SlideError("corrupt-header", f"{len(frames)} frames for {num_x} × {num_y} tiles")
    table[first : first + len(frames)] = frames[:room]
    return table


def _place_sparse(grid: Grid, frames: TileTable, groups: Any, table: TileTable, num_x: int) -> TileTable:
    if len(groups) != len(frames):
        raise SlideError("corrupt-header", f"{len(groups)} frame positions for {len(frames)} frames")
    for frame, group in zip(frames, groups, strict=True):
        position = group.PlanePositionSlideSequence[0]
        x = int(position.ColumnPositionInTotalImagePixelMatrix) - 1
        y = int(position.RowPositionInTotalImagePixelMatrix) - 1
        column, row = x // grid.tile_width_px, y // grid.tile_height_px
        if x % grid.tile_width_px or y % grid.tile_height_px:
            raise SlideError("unsupported-layout", f"a frame at ({x}, {y}) is not on the tile grid")
        if not (0 <= column < num_x and 0 <= row * num_x + column < len(table)):
            raise SlideError("corrupt-header", f"a frame at ({x}, {y}) lies outside the image")
        if table[row * num_x + column]["size_bytes"] == 0:
            table[row * num_x + column] = frame
    return table
