"""The tile grid of a DICOM level: which tile each frame is, of one focal plane and one optical path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.slides.errors import SlideError
from eosin.slides.model import TILE_DTYPE, TileTable

_Z_DECIMALS_MM = 7


@dataclass(frozen=True)
class FrameGrid:
    """The extent of a level and of its tiles in pixels, and how many pictures of it there are."""

    width_px: int
    height_px: int
    tile_width_px: int
    tile_height_px: int
    num_planes: int = 1
    """Focal planes."""
    num_paths: int = 1
    """Optical paths."""

    @property
    def num_tiles_x(self) -> int:
        """Columns of the tile grid."""
        return -(-self.width_px // self.tile_width_px)

    @property
    def num_tiles(self) -> int:
        """Tiles of one picture."""
        return self.num_tiles_x * -(-self.height_px // self.tile_height_px)


@dataclass(frozen=True)
class Placed:
    """The row-major table of a level, [num_tiles]; tiles without a frame are empty."""

    tiles: TileTable
    num_planes: int
    """Focal planes that there are; the middle one was taken."""


def place_in_order(grid: FrameGrid, frames: TileTable, first_frame: int | None) -> Placed:
    """Frames of TILED_FULL: row by row, then plane by plane, then path by path (PS3.3 C.7.6.17.3).

    `first_frame`: of a part of a concatenation; None: the object holds all of them. Raises `SlideError`
    where frames are missing.
    """
    middle = (grid.num_planes - 1) // 2 * grid.num_tiles
    if first_frame is None and len(frames) < middle + grid.num_tiles:
        raise SlideError("corrupt-header", f"{len(frames)} frames for a level of {grid.num_tiles} tiles")
    numbers = np.arange(len(frames)) + (first_frame or 0) - middle
    inside = (numbers >= 0) & (numbers < grid.num_tiles)
    table = np.zeros(grid.num_tiles, TILE_DTYPE)
    table[numbers[inside]] = frames[inside]
    return Placed(table, grid.num_planes)


def place_by_position(grid: FrameGrid, frames: TileTable, groups: Sequence[Any], shared: Any) -> Placed:
    """Frames where their per-frame functional groups say that they are.

    Of several focal planes the middle one is taken, of several optical paths the first. Raises `SlideError`
    for frames that are not on the grid.
    """
    if len(groups) != len(frames):
        raise SlideError("corrupt-header", f"{len(groups)} frame positions for {len(frames)} frames")
    column, row, z_mm = (np.array(each) for each in zip(*map(_position, groups), strict=True))
    chosen, num_planes = _in_middle_plane(z_mm)
    chosen &= _on_first_path(groups, shared)
    _refuse_off_grid(grid, column[chosen], row[chosen])
    tiles = row // grid.tile_height_px * grid.num_tiles_x + column // grid.tile_width_px
    table = np.zeros(grid.num_tiles, TILE_DTYPE)
    order = np.flatnonzero(chosen)[::-1]  # the first frame of a place stands
    table[tiles[order]] = frames[order]
    return Placed(table, num_planes)


def _position(group: Any) -> tuple[int, int, float]:
    """Column and row of a frame's corner, from 0, and its Z offset in mm."""
    position = group.PlanePositionSlideSequence[0]
    z_mm = position.get("ZOffsetInSlideCoordinateSystem")
    return (
        int(position.ColumnPositionInTotalImagePixelMatrix) - 1,
        int(position.RowPositionInTotalImagePixelMatrix) - 1,
        round(float(z_mm or 0.0), _Z_DECIMALS_MM),
    )


def _in_middle_plane(z_mm: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.bool_], int]:
    planes = np.unique(z_mm)
    return z_mm == planes[(len(planes) - 1) // 2], len(planes)


def _on_first_path(groups: Sequence[Any], shared: Any) -> npt.NDArray[np.bool_]:
    if shared is not None and shared.get("OpticalPathIdentificationSequence"):
        return np.ones(len(groups), bool)
    paths = [str(found[0].get("OpticalPathIdentifier", "")) if found else "" for found in
             (group.get("OpticalPathIdentificationSequence") for group in groups)]  # fmt: skip
    return np.array([path == paths[0] for path in paths])


def _refuse_off_grid(grid: FrameGrid, column: npt.NDArray[Any], row: npt.NDArray[Any]) -> None:
    outside = (column < 0) | (column >= grid.width_px) | (row < 0) | (row >= grid.height_px)
    between = (column % grid.tile_width_px != 0) | (row % grid.tile_height_px != 0)
    for wrong, reason, what in (
        (outside, "corrupt-header", "lies outside the image"),
        (between, "unsupported-layout", "is not on the tile grid"),
    ):
        if wrong.any():
            first = int(np.argmax(wrong))
            raise SlideError(reason, f"a frame at ({int(column[first])}, {int(row[first])}) {what}")
