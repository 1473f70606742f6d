"""Where a slide is out of focus, read off the sizes of its compressed tiles.

A lossy codec spends its bytes on detail, and blur has none: tiles of the finest level out of focus are
several times smaller than others of the same tissue. Their sizes are in the tile table already, so this
costs no request and no decoding. The measure is the upper quartile of the slide's own tissue tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from eosin.slides.model import Level, SlideHeader, TileTable
from eosin.slides.table import level_table

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

_LOSSY = ("jpeg", "jpeg2000")
_COARSEST_MPP = 0.6
# A tile of nothing: tables and headers, and one value a block. Smallest tiles beyond that hold detail.
_EMPTY_BYTES, _EMPTY_BYTES_A_PIXEL = 700, 1 / 64
_LEAST_TILES = 16
# One smooth tile among sharp ones is smooth; blur covers its neighbours too.
_MOST_AROUND = 0.5


@dataclass(frozen=True)
class Focus:
    """Compressed bytes of the finest level's tiles, [rows, columns], and the tiles' size in pixels."""

    sizes: Floats
    tile_width_px: int
    tile_height_px: int

    def blurred(self, tissue: Bools, pixel_x_px: float, pixel_y_px: float, least_detail: float) -> Bools:
        """Which pixels of a mask lie on tiles with less than `least_detail` of the slide's usual detail.

        Only tiles that are half tissue are judged, against each other, together with their neighbours,
        so that one smooth tile is not taken for blur: what is found is at least some four tiles across. A
        slide out of focus everywhere has no measure.
        """
        rows, columns = self._tiles_of(tissue.shape, pixel_x_px, pixel_y_px)
        judged = self._share(tissue, rows, columns) > 0.5
        if least_detail <= 0 or judged.sum() < _LEAST_TILES:
            return np.zeros_like(tissue)
        detail = self._detail(judged)
        around = cv2.blur(np.where(judged, detail, 0), (3, 3), borderType=cv2.BORDER_CONSTANT)
        num_around = cv2.blur(judged.astype(np.float32), (3, 3), borderType=cv2.BORDER_CONSTANT)
        smooth_around = around < max(least_detail, _MOST_AROUND) * num_around
        low = judged & (detail < least_detail) & smooth_around
        return np.asarray(low[rows][:, columns])

    def _detail(self, judged: Bools) -> Floats:
        """Bytes above those of an empty tile; 1 for the upper quartile of tissue, so that a slide may be out
        of focus by more than half."""
        most_empty = max(_EMPTY_BYTES, _EMPTY_BYTES_A_PIXEL * self.tile_width_px * self.tile_height_px)
        spent = self.sizes - min(float(self.sizes[self.sizes > 0].min()), most_empty)
        return np.asarray(spent / max(float(np.percentile(spent[judged], 75)), 1.0), np.float32)

    def _tiles_of(
        self, shape: tuple[int, ...], pixel_x_px: float, pixel_y_px: float
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The tile row of every mask row, and the tile column of every mask column."""
        y, x = (np.arange(shape[0]) + 0.5) * pixel_y_px, (np.arange(shape[1]) + 0.5) * pixel_x_px
        rows, columns = y // self.tile_height_px, x // self.tile_width_px
        return (
            np.clip(rows, 0, self.sizes.shape[0] - 1).astype(np.int64),
            np.clip(columns, 0, self.sizes.shape[1] - 1).astype(np.int64),
        )

    def _share(self, tissue: Bools, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> Floats:
        """Share of each tile that is tissue."""
        sums = cv2.integral(tissue.view(np.uint8), sdepth=cv2.CV_32S)
        ends_y = np.searchsorted(rows, np.arange(self.sizes.shape[0] + 1))
        ends_x = np.searchsorted(columns, np.arange(self.sizes.shape[1] + 1))
        inside = np.diff(np.diff(sums[ends_y][:, ends_x], axis=0), axis=1)
        pixels = np.outer(np.diff(ends_y), np.diff(ends_x))
        return np.asarray(inside / np.maximum(pixels, 1), np.float32)


def focus_of(header: SlideHeader, tiles: TileTable) -> Focus | None:
    """What the tile table says of the slide's focus; None where its codec or resolution says nothing."""
    level: Level | None = header.levels[0] if header.levels else None
    fine = max(header.mpp_x or np.inf, header.mpp_y or np.inf) <= _COARSEST_MPP
    if level is None or not fine or level.compression not in _LOSSY or not len(tiles):
        return None
    sizes = level_table(level, tiles)["size_bytes"].astype(np.float32)
    return Focus(sizes.reshape(level.num_tiles_y, -1), level.tile_width_px, level.tile_height_px)
