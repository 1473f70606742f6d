"""Out-of-focus areas of a slide, read off the sizes of its compressed tiles.

A lossy codec spends its bytes on detail, and blur has none: tiles of the finest level out of focus are
several times smaller than others of the same tissue. Their sizes are in the tile table already, so this
costs no request and no decoding. The measure is the upper quartile of the slide's own tissue tiles.

Smooth tissue has small tiles too. Blur is told from it by a level four times coarser, where there is one
with the same JPEG tables: there blur of a few µm does not show, so the finest level holds hardly more than
an enlarged copy of it would.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from eosin.slides.jpeg import quantization
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
# A JPEG of four times the sides of another has 6 to 7.3 times its bytes where it shows no more, whatever the
# quality and the chroma sampling (measured on H&E of many sources blurred by 2 µm); in focus 8 to 20 times,
# fat 7.2 to 10. For scales near four the ratio grows as a power of them.
_SHARPER_SCALE, _ENLARGED_RATIO, _ENLARGED_POWER = (3.5, 4.5), 7.1, 1.4
# Of the slide's own upper quartile; and a blurred tile still has less than the usual bytes.
_MOST_RATIO, _MOST_DETAIL = 0.87, 2.0
_LEAST_CELLS = 4
_GROWN_TILES = 4


@dataclass(frozen=True)
class Coarser:
    """What a coarser level holds of the same. Bytes are those above the tiles' headers, [rows, columns]."""

    finest_bytes: Floats
    """Of the finest level."""
    level_bytes: Floats
    tile_width_px: float
    """In level-0 pixels, as the height."""
    tile_height_px: float
    downsample: float


@dataclass(frozen=True)
class Focus:
    """Compressed bytes of the finest level's tiles, [rows, columns], and the tiles' size in pixels."""

    sizes: Floats
    tile_width_px: int
    tile_height_px: int
    coarser: Coarser | None = None

    def blurred(self, tissue: Bools, pixel_x_px: float, pixel_y_px: float, least_detail: float) -> Bools:
        """Which pixels of a mask lie on tiles with less than `least_detail` of the slide's usual detail.

        Only tiles that are half tissue are judged, against each other, together with their neighbours,
        so that one smooth tile is not taken for blur: what is found is at least some four tiles across.
        With less than twice `least_detail`, a tile is blurred where the coarser level says so. A slide out of
        focus everywhere has no measure.
        """
        rows, columns = self._tiles_of(tissue.shape, pixel_x_px, pixel_y_px)
        judged = self._share(tissue, rows, columns) > 0.5
        if least_detail <= 0 or judged.sum() < _LEAST_TILES:
            return np.zeros_like(tissue)
        detail = self._detail(judged)
        around = cv2.blur(np.where(judged, detail, 0), (3, 3), borderType=cv2.BORDER_CONSTANT)
        num_around = cv2.blur(judged.astype(np.float32), (3, 3), borderType=cv2.BORDER_CONSTANT)
        smooth_around = around < max(least_detail, _MOST_AROUND) * num_around
        low = (detail < least_detail) & smooth_around
        soft = judged & (detail < _MOST_DETAIL * least_detail)
        low = judged & (low | _grown(soft & self._enlarged(judged), soft))
        return np.asarray(low[rows][:, columns])

    def _detail(self, judged: Bools) -> Floats:
        """Bytes above those of an empty tile; 1 for the upper quartile of tissue, so that a slide may be out
        of focus by more than half."""
        most_empty = max(_EMPTY_BYTES, _EMPTY_BYTES_A_PIXEL * self.tile_width_px * self.tile_height_px)
        spent = self.sizes - min(float(self.sizes[self.sizes > 0].min()), most_empty)
        return np.asarray(spent / max(float(np.percentile(spent[judged], 75)), 1.0), np.float32)

    def _enlarged(self, judged: Bools) -> Bools:
        """Which tiles lie under a tile of the coarser level that shows all that they hold."""
        if self.coarser is None:
            return np.zeros_like(judged)
        coarser, (num_rows, num_columns) = self.coarser, self.coarser.level_bytes.shape
        y, x = ((np.arange(num) + 0.5) for num in self.sizes.shape)
        rows = np.minimum(y * self.tile_height_px // coarser.tile_height_px, num_rows - 1)
        columns = np.minimum(x * self.tile_width_px // coarser.tile_width_px, num_columns - 1)
        cells = (rows[:, None] * num_columns + columns).astype(np.int64)

        def summed(values: npt.NDArray[Any]) -> Floats:
            return np.bincount(cells.ravel(), values.ravel(), coarser.level_bytes.size).astype(np.float32)

        num_tiles = np.maximum(summed(np.ones_like(self.sizes)), 1)
        whole = coarser.tile_width_px * coarser.tile_height_px / (self.tile_width_px * self.tile_height_px)
        ratio = summed(coarser.finest_bytes) / num_tiles * whole / np.maximum(coarser.level_bytes.ravel(), 1)
        mostly_tissue = (summed(judged) >= 0.5 * num_tiles) & (num_tiles >= 0.9 * whole)  # none at an edge
        if mostly_tissue.sum() < _LEAST_CELLS:
            return np.zeros_like(judged)
        most = _ENLARGED_RATIO * (coarser.downsample / 4) ** _ENLARGED_POWER
        most = min(most, _MOST_RATIO * float(np.percentile(ratio[mostly_tissue], 75)))
        return np.asarray((mostly_tissue & (ratio < most))[cells])

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


def _grown(found: Bools, within: Bools) -> Bools:
    """`found` and the tiles of `within` that hang together with it, as far as a tile of the coarser level."""
    grown = found.view(np.uint8)
    for _ in range(_GROWN_TILES):
        grown = cv2.dilate(grown, np.ones((3, 3), np.uint8)) & within.view(np.uint8)
    return np.asarray(grown | found.view(np.uint8)).view(bool)


def focus_of(header: SlideHeader, tiles: TileTable, samples: Sequence[bytes] = ()) -> Focus | None:
    """What the tile table says of the slide's focus; None where its codec or resolution says nothing.

    `samples`: the bytes of one tile of each level, finest first, which tell whether levels compare.
    """
    level: Level | None = header.levels[0] if header.levels else None
    fine = max(header.mpp_x or np.inf, header.mpp_y or np.inf) <= _COARSEST_MPP
    if level is None or not fine or level.compression not in _LOSSY or not len(tiles):
        return None
    coarser = _coarser(header, tiles, samples) if samples else None
    return Focus(_sizes(level, tiles), level.tile_width_px, level.tile_height_px, coarser)


def _sizes(level: Level, tiles: TileTable, header_bytes: int = 0) -> Floats:
    sizes = level_table(level, tiles)["size_bytes"].astype(np.float32) - header_bytes
    return np.asarray(np.maximum(sizes, 0).reshape(level.num_tiles_y, -1))


def _coarser(header: SlideHeader, tiles: TileTable, samples: Sequence[bytes]) -> Coarser | None:
    """The level some four times coarser than the finest, where both have the same quantisation tables."""
    levels = {level.downsample: (level, data) for level, data in zip(header.levels, samples, strict=True)
              if level.compression == "jpeg"}  # fmt: skip
    down = next((each for each in levels if _SHARPER_SCALE[0] <= each <= _SHARPER_SCALE[1]), 0.0)
    if 1.0 not in levels or not down:
        return None
    (finest, finest_sample), (level, sample) = levels[1.0], levels[down]
    (wanted, finest_header), (found, level_header) = (
        quantization(finest, finest_sample), quantization(level, sample),
    )  # fmt: skip
    if wanted != found:
        return None
    return Coarser(
        _sizes(finest, tiles, finest_header), _sizes(level, tiles, level_header),
        level.tile_width_px * down, level.tile_height_px * down, down,
    )  # fmt: skip
