"""JPEG tiles as TIFF and DICOM keep them: tables apart, colour transform unsaid."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import simplejpeg

from eosin.slides.errors import SlideError
from eosin.slides.model import Level
from eosin.slides.region import is_tile_size, whole_tile

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
# Adobe's segment with transform 0: the three components are red, green and blue.
_APP14_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
_HARMLESS = "extraneous bytes before marker"


def complete_jpeg(level: Level, data: bytes) -> bytes:
    """A JPEG any decoder reads right: tables spliced in, and the colour transform said.

    A tile whose photometric interpretation is RGB and which carries neither a JFIF nor an Adobe marker
    would be taken for YCbCr; a JFIF marker says YCbCr and is believed. Where an Adobe marker or the names of
    the components contradict the header, OpenSlide and libtiff follow the header and others the tile:
    `SlideError` (`unsupported-pixels`) is raised.
    """
    if data[:2] != _SOI:
        raise SlideError("corrupt-tile", "a tile is not a JPEG")
    tables = table_segments(level.jpeg_tables)
    said = _colour_said(tables + data[2:])
    if said not in ("", "jfif") and level.color_space in ("rgb", "ycbcr") and level.color_space not in said:
        raise SlideError(
            "unsupported-pixels",
            f"the header says {level.color_space}, its JPEG tiles {said}: readers show other colours",
        )
    marker = _APP14_RGB if level.color_space == "rgb" and said in ("", "rgb by name") else b""
    return data if not tables and not marker else b"".join((_SOI, tables, marker, data[2:]))


def decode_jpeg(level: Level, data: bytes, scale_denominator: int) -> npt.NDArray[np.uint8]:
    """[ceil(h / scale), ceil(w / scale), 3] of a JPEG tile, scaled in the DCT domain.

    Raises `SlideError` (`corrupt-tile`) for damage, or for dimensions that no tile of the level has.
    """
    jpeg = complete_jpeg(level, data)
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
        if not is_tile_size(level, width, height):
            raise SlideError("corrupt-tile", f"a JPEG tile is {width} × {height} px")
        pixels = _decode(jpeg, -(-height // scale_denominator), -(-width // scale_denominator))
        return whole_tile(level, pixels, scale_denominator)
    except ValueError as error:
        raise SlideError("corrupt-tile", f"a JPEG tile cannot be decoded: {error}") from error


def _decode(jpeg: bytes, min_height: int, min_width: int) -> npt.NDArray[np.uint8]:
    try:
        pixels = simplejpeg.decode_jpeg(jpeg, "RGB", min_height=min_height, min_width=min_width)
    except ValueError as error:
        if _HARMLESS not in str(error):
            raise
        pixels = simplejpeg.decode_jpeg(jpeg, "RGB", min_height=min_height, min_width=min_width, strict=False)
    decoded: npt.NDArray[np.uint8] = pixels
    return decoded


def table_segments(tables: bytes | None) -> bytes:
    """The segments between SOI and EOI of an abbreviated table stream."""
    if not tables or tables[:2] != _SOI:
        return b""
    end = tables.rfind(_EOI)
    return tables[2 : end if end >= 2 else len(tables)]


def _colour_said(segments: bytes) -> str:
    """What a JPEG says of its three components, as libjpeg takes it: `jfif`, else `rgb` or `ycbcr` by Adobe's
    marker, else `rgb by name`, else nothing."""
    jfif = adobe = named = ""
    for code, at, end in _segments(segments):
        if code == 0xE0 and segments[at : at + 5] == b"JFIF\0":
            jfif = "jfif"
        elif code == 0xEE and segments[at : at + 5] == b"Adobe" and end - at >= 12:
            adobe = "ycbcr" if segments[at + 11] else "rgb"
        elif code in (0xC0, 0xC1, 0xC2) and segments[at + 6 : end : 3] == b"RGB":
            named = "rgb by name"
    return jfif or adobe or named


def quantization(level: Level, data: bytes) -> tuple[bytes, int]:
    """The quantisation tables a JPEG tile is decoded with, and how many of its own bytes are header."""
    shared, own = table_segments(level.jpeg_tables), data[2:]
    tables = b"".join(
        part[at:end] for part in (shared, own) for code, at, end in _segments(part) if code == 0xDB
    )
    return tables, 2 + max((end for code, _, end in _segments(own) if code == 0xDA), default=0)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of the payload of each segment up to that of the first scan's header."""
    at = 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        code = data[at + 1]
        if code == 0xFF:
            at += 1
            continue
        end = at + 2 + (data[at + 2] << 8 | data[at + 3])
        yield code, at + 4, end
        if code == 0xDA:
            return
        at = end
