"""Overview of a slide: the pixels that the tissue mask and the thumbnail are made of."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import gcd

import cv2
import numpy as np
import numpy.typing as npt

from eosin.slides.decode import decode_tile
from eosin.slides.errors import SlideError
from eosin.slides.local import LocalSlide
from eosin.slides.model import Level, SlideHeader, TileTable
from eosin.slides.region import fetch_tiles, tile_from_finer
from eosin.slides.table import level_table
from eosin.storage import RangedObjects

Pixels = npt.NDArray[np.uint8]
_TILES_AT_ONCE = 64
_MAX_CANVAS_PIXELS = 128 * 2**20
_WORST_SHARE = 0.01
_LOCAL_SIDE_PX, _DAMAGED_SIDE_PX = 2048, 256


@dataclass(frozen=True)
class Overview:
    """`pixels` [h, w, 3] RGB; a pixel of it is `pixel_x_px` × `pixel_y_px` level-0 pixels."""

    pixels: Pixels
    pixel_x_px: float
    pixel_y_px: float
    num_damaged: int
    """Tiles (in a staged copy: squares of 256 px) that could not be decoded; they are white here."""


def smallest_sufficient_level(header: SlideHeader, mpp: float) -> int:
    """The coarsest level that is at least as fine as `mpp` µm a pixel; level 0 where none is."""
    finest = max(header.mpp_x or 0.0, header.mpp_y or 0.0)
    fitting = [i for i, level in enumerate(header.levels) if finest * level.downsample <= mpp * 1.05]
    return fitting[-1] if fitting else 0


def read_overview(store: RangedObjects, header: SlideHeader, tiles: TileTable, mpp: float) -> Overview:
    """The slide at about `mpp` µm a pixel (finer slides are averaged down), from ranged reads.

    Memory is the overview and 64 tiles. Raises `SlideError` (`corrupt-tile`) where more than 1 % of the
    tiles cannot be decoded.
    """
    number = smallest_sufficient_level(header, mpp)
    level = header.levels[number]
    factor = _factor(level, header, mpp)
    width, height = max(1, level.width_px // factor), max(1, level.height_px // factor)
    if width * height > _MAX_CANVAS_PIXELS:
        raise SlideError("unsupported-layout", f"its coarsest fitting level has {width * height} pixels")
    canvas = np.full((height, width, 3), 255, np.uint8)
    num_damaged = 0
    for index, data in _stored_tiles(store, header, level, tiles):
        try:
            small = _reduced(level, data, factor)
        except SlideError:
            num_damaged += 1
            continue
        _place(canvas, small, level, index, factor)
    for index, pixels in _absent_tiles(store, header, number, tiles):
        _place(canvas, pixels, level, index, factor)
    if num_damaged > _WORST_SHARE * level.num_tiles:
        raise SlideError("corrupt-tile", f"{num_damaged} of {level.num_tiles} tiles cannot be decoded")
    return _at_mpp(canvas, header, level, factor, mpp, num_damaged)


def read_local_overview(slide: LocalSlide, header: SlideHeader, mpp: float) -> Overview:
    """As `read_overview`, through OpenSlide on a staged copy."""
    number = smallest_sufficient_level(header, mpp)
    level = header.levels[number]
    factor = max(1, int(mpp / (level.downsample * _coarser_mpp(header))))
    width, height = max(1, level.width_px // factor), max(1, level.height_px // factor)
    if width * height > _MAX_CANVAS_PIXELS:
        raise SlideError("unsupported-layout", f"its coarsest fitting level has {width * height} pixels")
    canvas = np.full((height, width, 3), 255, np.uint8)
    reading = _LocalReading(slide, number, level)
    side = max(1, _LOCAL_SIDE_PX // factor)
    for row in range(0, height, side):
        for column in range(0, width, side):
            h, w = min(side, height - row), min(side, width - column)
            region = reading.region(column * factor, row * factor, w * factor, h * factor)
            canvas[row : row + h, column : column + w] = _averaged(region, factor)
    return _at_mpp(canvas, header, level, factor, mpp, reading.num_damaged)


@dataclass
class _LocalReading:
    """One level of a staged copy; what OpenSlide cannot read of it is white and counted."""

    slide: LocalSlide
    number: int
    level: Level
    num_damaged: int = 0

    def region(self, x: int, y: int, w: int, h: int) -> Pixels:
        """[h, w, 3]; the corner is in the level's pixels. Raises `SlideError` where too much is damaged."""
        down = self.level.downsample
        try:
            return self.slide.read_region(round(x * down), round(y * down), self.number, w, h)
        except SlideError as error:
            if max(w, h) <= _DAMAGED_SIDE_PX:
                self._count(error)
                return np.full((h, w, 3), 255, np.uint8)
        i, j = (-(-extent // 2) if extent > _DAMAGED_SIDE_PX else extent for extent in (h, w))
        rows = [(y, i), (y + i, h - i)] if h > i else [(y, h)]
        columns = [(x, j), (x + j, w - j)] if w > j else [(x, w)]
        return np.vstack([np.hstack([self.region(u, v, m, n) for u, m in columns]) for v, n in rows])

    def _count(self, error: SlideError) -> None:
        self.num_damaged += 1
        num = self.level.width_px * self.level.height_px / _DAMAGED_SIDE_PX**2
        if self.num_damaged > max(1.0, _WORST_SHARE * num):
            raise error


def _coarser_mpp(header: SlideHeader) -> float:
    return max(header.mpp_x or 0.0, header.mpp_y or 0.0) or 1.0


def _factor(level: Level, header: SlideHeader, mpp: float) -> int:
    """By how much tiles are averaged, so that the picture stays at least as fine as `mpp`.

    A divisor of both tile sides where there is a good one; else tiles are fitted to whole pixels.
    """
    most = max(1, int(mpp / (level.downsample * _coarser_mpp(header))))
    common = gcd(level.tile_width_px, level.tile_height_px)
    exact = max(each for each in range(1, most + 1) if common % each == 0)
    return exact if 2 * exact > most else min(most, level.tile_width_px, level.tile_height_px)


def _absent_tiles(
    store: RangedObjects, header: SlideHeader, number: int, tiles: TileTable
) -> Iterator[tuple[int, Pixels]]:
    """Tiles that the level lacks and a finer one shows; damage below them leaves them white."""

    def load(level_number: int, wanted: Sequence[int]) -> dict[int, Pixels | None]:
        level = header.levels[level_number]
        data = fetch_tiles(store, header, level_table(level, tiles), list(wanted))
        return {
            i: decode_tile(level, part) if part else tile_from_finer(header, level_number, i, load)
            for i, part in data.items()
        }

    absent = np.flatnonzero(level_table(header.levels[number], tiles)["size_bytes"] == 0)
    for index in absent.tolist() if number else ():
        with contextlib.suppress(SlideError):
            pixels = tile_from_finer(header, number, index, load)
            if pixels is not None:
                yield index, pixels


def _stored_tiles(
    store: RangedObjects, header: SlideHeader, level: Level, tiles: TileTable
) -> Iterator[tuple[int, bytes]]:
    rows = level_table(level, tiles)
    filled = iter(np.flatnonzero(rows["size_bytes"]).tolist())
    while chunk := list(islice(filled, _TILES_AT_ONCE)):
        yield from fetch_tiles(store, header, rows, chunk).items()


def _reduced(level: Level, data: bytes, factor: int) -> Pixels:
    exact = level.tile_width_px % factor == 0 and level.tile_height_px % factor == 0
    if not exact:
        return decode_tile(level, data)
    scale = next(each for each in (8, 4, 2, 1) if factor % each == 0)
    return _averaged(decode_tile(level, data, scale), factor // scale)


def _averaged(pixels: Pixels, factor: int) -> Pixels:
    if factor == 1:
        return pixels
    size = (pixels.shape[1] // factor, pixels.shape[0] // factor)
    small: Pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return small


def _place(canvas: Pixels, small: Pixels, level: Level, index: int, factor: int) -> None:
    row, column = divmod(index, level.num_tiles_x)
    (y, y_end), (x, x_end) = (
        (round(number * side / factor), round((number + 1) * side / factor))
        for number, side in ((row, level.tile_height_px), (column, level.tile_width_px))
    )
    if small.shape[:2] != (y_end - y, x_end - x):
        small = np.asarray(cv2.resize(small, (x_end - x, y_end - y), interpolation=cv2.INTER_AREA), np.uint8)
    h, w = min(small.shape[0], canvas.shape[0] - y), min(small.shape[1], canvas.shape[1] - x)
    if h > 0 and w > 0:
        canvas[y : y + h, x : x + w] = small[:h, :w]


def _at_mpp(
    canvas: Pixels, header: SlideHeader, level: Level, factor: int, mpp: float, num_damaged: int
) -> Overview:
    """Average down the rest of the way, to square pixels of `mpp` where the slide is finer."""
    base = header.levels[0]
    pixel_x = factor * base.width_px / level.width_px
    pixel_y = factor * base.height_px / level.height_px
    height, width = canvas.shape[:2]
    out_w = max(1, round(width * min(1.0, pixel_x * (header.mpp_x or mpp) / mpp)))
    out_h = max(1, round(height * min(1.0, pixel_y * (header.mpp_y or mpp) / mpp)))
    small: Pixels = canvas
    if (out_w, out_h) != (width, height):
        small = cv2.resize(canvas, (out_w, out_h), interpolation=cv2.INTER_AREA)
    return Overview(small, pixel_x * width / out_w, pixel_y * height / out_h, num_damaged)
