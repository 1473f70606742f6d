"""Slides of the TIFF family, from their directories: levels and the place of every tile."""

from typing import cast

import numpy as np

from eosin.slides import tiff_ifd as tag
from eosin.slides.errors import SlideError
from eosin.slides.model import (
    ColorSpace,
    Compression,
    Level,
    SlideHeader,
    SlideObject,
    TileTable,
)
from eosin.slides.table import check_grid, check_total, concatenate, make_table, row_major
from eosin.slides.tiff_ifd import Directory, TiffFile
from eosin.slides.tiff_vendors import Pyramid, read_pyramid

_COMPRESSIONS: dict[int, Compression] = {
    1: "none", 5: "lzw", 7: "jpeg", 8: "deflate", 32946: "deflate",
    33003: "jpeg2000", 33004: "jpeg2000", 33005: "jpeg2000", 34712: "jpeg2000", 34926: "zstd", 50000: "zstd",
    32773: "packbits", 50001: "webp",
}  # fmt: skip
_APERIO_YCBCR, _LOSSY, _APERIO_RGB = 33003, 33004, 33005
_GRAY, _RGB, _YCBCR = 1, 2, 6


def read_tiff(tiff: TiffFile, stored: SlideObject) -> tuple[SlideHeader, TileTable, str]:
    """Header and tile table of the slide in `stored`, and a remark where a picture was chosen of several.

    Raises `SlideError` for a damaged or unsupported file, `NeedsOpenSlide` for a dialect whose tiles
    the tags alone do not place.
    """
    directories = list(tiff.directories())
    if not directories:
        raise SlideError("corrupt-header", "it is a TIFF without directories")
    pyramid = read_pyramid(tiff, directories)
    levels: list[Level] = []
    tables: list[TileTable] = []
    first_tile = 0
    for number, directory in enumerate(pyramid.levels):
        level = _level(directory, pyramid, number, levels, first_tile)
        first_tile += level.num_tiles
        check_total(first_tile)
        levels.append(level)
        tables.append(_tiles(directory, level))
    header = SlideHeader(
        (stored,), pyramid.vendor, pyramid.format, tuple(levels), pyramid.mpp_x, pyramid.mpp_y
    )
    return header, concatenate(tables), pyramid.remark


def _level(directory: Directory, pyramid: Pyramid, number: int, finer: list[Level], first_tile: int) -> Level:
    width, height, downsample = _level_size(directory, pyramid, number, finer)
    tile_width, tile_height = directory.integer(tag.TILE_WIDTH), directory.integer(tag.TILE_LENGTH)
    check_grid(width, height, tile_width, tile_height)
    compression = _compression(directory)
    return Level(
        width_px=width,
        height_px=height,
        downsample=downsample,
        tile_width_px=tile_width,
        tile_height_px=tile_height,
        compression=compression,
        color_space=_color_space(directory, compression, pyramid.format),
        first_tile=first_tile,
        jpeg_tables=(directory.raw(tag.JPEG_TABLES) or None) if compression == "jpeg" else None,
        predictor=_predictor(directory, compression),
    )


def _level_size(
    directory: Directory, pyramid: Pyramid, number: int, finer: list[Level]
) -> tuple[int, int, float]:
    """Width and height in pixels and the downsample, the mean over both axes as OpenSlide has it."""
    width, height = directory.integer(tag.IMAGE_WIDTH), directory.integer(tag.IMAGE_LENGTH)
    if not finer:
        return width, height, 1.0
    if min(width, height) <= 0:
        raise SlideError("corrupt-header", f"level {number} is {width} × {height} px")
    base = finer[0]
    if pyramid.downsamples is not None:
        downsample = pyramid.downsamples[number]
        clipped = (int(base.width_px / downsample), int(base.height_px / downsample))
        return min(width, clipped[0]), min(height, clipped[1]), downsample
    return width, height, (base.width_px / width + base.height_px / height) / 2


def _compression(directory: Directory) -> Compression:
    code = directory.integer(tag.COMPRESSION, 1)
    if code not in _COMPRESSIONS:
        raise SlideError("unsupported-compression", f"its tiles use TIFF compression {code}")
    return _COMPRESSIONS[code]


def _predictor(directory: Directory, compression: Compression) -> int:
    predictor = directory.integer(tag.PREDICTOR, 1) if compression in ("lzw", "deflate", "zstd") else 1
    if predictor not in (1, 2):
        raise SlideError("unsupported-compression", f"its tiles use TIFF predictor {predictor}")
    return predictor


def _color_space(directory: Directory, compression: Compression, format_name: str) -> ColorSpace:
    """What the compressed samples are. Raises `SlideError` for pixels that are not 8-bit gray or RGB."""
    samples = directory.integer(tag.SAMPLES_PER_PIXEL, 1)
    bits = directory.integers(tag.BITS_PER_SAMPLE).tolist() or [1]  # as TIFF 6.0 has it
    photometric = directory.integer(tag.PHOTOMETRIC, _GRAY)
    if set(bits) != {8} or directory.integer(tag.SAMPLE_FORMAT, 1) != 1:
        raise SlideError("unsupported-pixels", f"its samples have {bits[:4]} bits, not 8")
    if samples > 1 and directory.integer(tag.PLANAR_CONFIGURATION, 1) != 1:
        raise SlideError("unsupported-layout", "its colour planes are stored one after the other")
    if compression != "jpeg" and directory.integer(tag.FILL_ORDER, 1) != 1:
        raise SlideError("unsupported-layout", "the bits of its bytes are stored in reverse (FillOrder 2)")
    if directory.integer(tag.ORIENTATION, 1) in range(2, 9):
        raise SlideError("unsupported-layout", "it is to be turned or mirrored for display (Orientation)")
    alpha = _alpha(directory, samples) if compression != "jpeg" else ""
    if photometric == _GRAY and samples in (1, 2):
        return cast(ColorSpace, "gray" + alpha)
    if samples not in (3, 4) or photometric not in (_RGB, _YCBCR):
        raise SlideError("unsupported-pixels", f"{samples} samples a pixel, photometric {photometric}")
    if compression == "jpeg2000":
        code = directory.integer(tag.COMPRESSION)
        if code == _LOSSY and photometric == _RGB and format_name != "ome-tiff":
            # OME-TIFFs hold RGB; libvips stores YCbCr and says RGB.
            raise SlideError(
                "unsupported-pixels", "JPEG 2000 by TIFF compression 33004: RGB or YCbCr, nothing says"
            )
        ycbcr = code == _APERIO_YCBCR or (code != _APERIO_RGB and photometric == _YCBCR)
        return "ycbcr" if ycbcr else cast(ColorSpace, "rgb" + alpha)
    if photometric == _YCBCR and compression != "jpeg":
        raise SlideError("unsupported-pixels", f"YCbCr samples under {compression} compression")
    return "ycbcr" if photometric == _YCBCR else cast(ColorSpace, "rgb" + alpha)


def _alpha(directory: Directory, samples: int) -> str:
    """What the sample after the colours is (TIFF 6.0, ExtraSamples); empty for none."""
    kinds = directory.integers(tag.EXTRA_SAMPLES).tolist()[:1] or [0]
    return "" if samples in (1, 3) else {1: "+premultiplied", 2: "+straight"}.get(kinds[0], "+other")


def _tiles(directory: Directory, level: Level) -> TileTable:
    stored_x = -(-directory.integer(tag.IMAGE_WIDTH) // level.tile_width_px)
    stored_y = -(-directory.integer(tag.IMAGE_LENGTH) // level.tile_height_px)
    counts = {directory.entries[each].count for each in (tag.TILE_OFFSETS, tag.TILE_BYTE_COUNTS)
              if directory.has(each)}  # fmt: skip
    if counts != {stored_x * stored_y}:
        raise SlideError(
            "corrupt-header",
            f"a level of {stored_x} × {stored_y} tiles has {sorted(counts)} offsets and sizes",
        )
    offsets, sizes = directory.integers(tag.TILE_OFFSETS), directory.integers(tag.TILE_BYTE_COUNTS)
    table = make_table(offsets.astype(np.uint64), sizes.astype(np.int64))
    return row_major(table, stored_x, level.num_tiles_x, level.num_tiles_y)
