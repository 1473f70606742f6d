"""Writing a pyramid as a tiled TIFF, in the order and with the words of an Aperio scanner."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg
import tifffile

from eosin.demo.synthetic.config import SlideCompression, SyntheticConfig

Rgb = npt.NDArray[np.uint8]
_DQT, _DHT, _SOF, _SOS, _EOI = 0xDB, 0xC4, 0xC0, 0xDA, b"\xff\xd9"
_SOI = b"\xff\xd8"
_JPEG, _J2K_YCBCR, _J2K_RGB = 7, 33003, 33005


class TileCodec:
    """Encodes (h, w, 3) uint8 RGB tiles; `tags()` are what the page must say about them."""

    def __init__(self, compression: SlideCompression, quality: int) -> None:
        self.compression = compression
        self.quality = quality

    @property
    def aperio_name(self) -> str:
        """How Aperio names the compression in a description."""
        if self.compression.startswith("jpeg2000"):
            return f"J2K/KDU Q={self.quality}"
        if self.compression in ("jpeg", "jpeg-rgb"):
            return f"JPEG/{'RGB' if self.compression == 'jpeg-rgb' else 'YCC'} Q={self.quality}"
        return self.compression.upper()

    @property
    def by_tifffile(self) -> Literal["lzw", "deflate", "none"] | None:
        """The lossless schemes, which tifffile encodes itself."""
        lossless = self.compression in ("lzw", "deflate", "none")
        return self.compression if lossless else None  # type: ignore[return-value]  # mypy does not narrow by `in`

    @property
    def predictor(self) -> bool:
        """Whether tiles are stored as horizontal differences."""
        return self.compression in ("lzw", "deflate")

    def encode(self, tile: Rgb) -> bytes:
        """The bytes of one tile; JPEG leaves out the tables that `tags()` shares between tiles."""
        if self.compression == "jpeg2000-rgb":
            return bytes(imagecodecs.jpeg2k_encode(tile, level=self.quality // 2, codecformat="j2k"))
        if self.compression == "jpeg2000-ycbcr":
            ycbcr = cv2.cvtColor(tile, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
            return bytes(imagecodecs.jpeg2k_encode(np.ascontiguousarray(ycbcr), level=self.quality // 2,
                                                   codecformat="j2k", mct=False))  # fmt: skip
        return _without_tables(self._jpeg(tile))

    def tags(self, side_px: int) -> dict[str, Any]:
        """Arguments of `TiffWriter.write` for pages of encoded tiles about `side_px` high."""
        if self.compression == "jpeg2000-rgb":
            return {"compression": _J2K_RGB, "photometric": "rgb"}
        if self.compression == "jpeg2000-ycbcr":
            return {"compression": _J2K_YCBCR, "photometric": "rgb"}
        tables = _tables(self._jpeg(np.zeros((side_px, side_px, 3), np.uint8)))
        if self.compression == "jpeg-rgb":
            return {"compression": _JPEG, "photometric": "rgb", "jpegtables": tables,
                    "compressionargs": {"outcolorspace": "rgb"}}  # fmt: skip
        return {"compression": _JPEG, "photometric": "ycbcr", "subsampling": (2, 2), "jpegtables": tables}

    def _jpeg(self, tile: Rgb) -> bytes:
        if self.compression == "jpeg-rgb":
            whole = imagecodecs.jpeg8_encode(
                tile, level=self.quality, colorspace="RGB", outcolorspace="RGB", subsampling="444"
            )
            return _anonymous(bytes(whole))
        return bytes(
            simplejpeg.encode_jpeg(tile, quality=self.quality, colorspace="RGB", colorsubsampling="420")
        )


def _segments(jpeg: bytes) -> list[tuple[int, bytes]]:
    """Marker segments after SOI as (code, bytes with marker); the last one is SOS with all that follows."""
    found: list[tuple[int, bytes]] = []
    at = 2
    while True:
        code = jpeg[at + 1]
        if code == _SOS:
            return [*found, (code, jpeg[at:])]
        length = 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        found.append((code, jpeg[at : at + length]))
        at += length


def _tables(jpeg: bytes) -> bytes:
    """The quantisation and Huffman tables of `jpeg` alone, as TIFF tag 347 wants them."""
    return _SOI + b"".join(part for code, part in _segments(jpeg) if code in (_DQT, _DHT)) + _EOI


def _without_tables(jpeg: bytes) -> bytes:
    """`jpeg` without tables and application markers: an abbreviated stream."""
    return _SOI + b"".join(part for code, part in _segments(jpeg) if code in (_SOF, _SOS))


def _anonymous(jpeg: bytes) -> bytes:
    """Components numbered 0, 1, 2 in place of the letters R, G, B, which would tell a decoder."""
    parts = []
    for code, part in _segments(jpeg):
        data = bytearray(part)
        if code == _SOF:
            data[10:19:3] = bytes((0, 1, 2))
        elif code == _SOS:
            data[5:11:2] = bytes((0, 1, 2))
        parts.append(bytes(data))
    return _SOI + b"".join(parts)


_LIBRARY = "Aperio Image Library v12.0.15"
_FINGERPRINT_KEY = "Synthetic = "
_HEAD_BYTES = 4096
_REDUCED, _LABEL, _MACRO = 1, 1, 9


@dataclass(frozen=True)
class Associated:
    """The images beside the pyramid, uint8 RGB."""

    label: Rgb
    macro: Rgb


def write_pyramid(
    path: Path, pixels: Rgb, associated: Associated, config: SyntheticConfig, fingerprint: str
) -> None:
    """Writes level-0 `pixels` (height, width, 3) and the levels and images that go with them to `path`."""
    levels = _levels(pixels, config.downsamples)
    with tifffile.TiffWriter(path, bigtiff=config.bigtiff, byteorder="<") as writer:
        if config.layout == "aperio":
            _write_aperio(writer, levels, associated, config, fingerprint)
        else:
            _write_generic(writer, levels, config, fingerprint)


def read_fingerprint(path: Path) -> str | None:
    """The fingerprint in the first page's description; None where `path` is no slide of this generator.

    The description is among the first things in the file, before the first tile.
    """
    try:
        with path.open("rb") as file:
            found = re.search(rb"%s([0-9a-f]{16})\b" % _FINGERPRINT_KEY.encode(), file.read(_HEAD_BYTES))
    except OSError:
        return None
    return found[1].decode() if found else None


def _levels(pixels: Rgb, downsamples: tuple[int, ...]) -> list[Rgb]:
    """Each level is an area average of the one before; sizes are rounded down, as Aperio does."""
    height_px, width_px = pixels.shape[:2]
    levels = [pixels]
    for downsample in downsamples[1:]:
        size = (width_px // downsample, height_px // downsample)
        levels.append(cv2.resize(levels[-1], size, interpolation=cv2.INTER_AREA))
    return levels


def _write_aperio(
    writer: tifffile.TiffWriter,
    levels: list[Rgb],
    associated: Associated,
    config: SyntheticConfig,
    fingerprint: str,
) -> None:
    codec = TileCodec(config.compression, config.quality)
    full = f"{levels[0].shape[1]}x{levels[0].shape[0]}"
    tail = (
        f"|AppMag = {10 / config.mpp:g}|MPP = {config.mpp:.4f}|Left = 0.0|Top = 0.0"
        f"|OriginalWidth = {levels[0].shape[1]}|OriginalHeight = {levels[0].shape[0]}"
        f"|{_FINGERPRINT_KEY}{fingerprint}"
    )
    tiled = f"({config.tile_px}x{config.tile_px}) {codec.aperio_name}"
    _write_tiles(writer, levels[0], codec, config, f"{_LIBRARY}\r\n{full} {tiled}{tail}")
    thumbnail = _fitted(levels[-1] if max(levels[-1].shape) >= 512 else levels[min(1, len(levels) - 1)], 1024)
    size = f"{thumbnail.shape[1]}x{thumbnail.shape[0]}"
    _write_strips(writer, thumbnail, f"{_LIBRARY}\n{full} -> {size} - {tail}", 0)
    for level in levels[1:]:
        words = f"{_LIBRARY}\r\n{full} {tiled} -> {level.shape[1]}x{level.shape[0]} {codec.aperio_name}{tail}"
        _write_tiles(writer, level, codec, config, words)
    for name, image, kind in (("label", associated.label, _LABEL), ("macro", associated.macro, _MACRO)):
        _write_strips(writer, image, f"{_LIBRARY}\n{name} {image.shape[1]}x{image.shape[0]}", kind)


def _write_generic(
    writer: tifffile.TiffWriter, levels: list[Rgb], config: SyntheticConfig, fingerprint: str
) -> None:
    codec = TileCodec(config.compression, config.quality)
    for number, level in enumerate(levels):
        words = f"synthetic slide|{_FINGERPRINT_KEY}{fingerprint}" if number == 0 else None
        per_cm = 10_000 / (config.mpp * config.downsamples[number])
        _write_tiles(writer, level, codec, config, words, subfiletype=_REDUCED if number else 0,
                     resolution=(per_cm, per_cm), resolutionunit="CENTIMETER")  # fmt: skip


def _write_tiles(
    writer: tifffile.TiffWriter,
    level: Rgb,
    codec: TileCodec,
    config: SyntheticConfig,
    words: str | None,
    **tags: Any,
) -> None:
    side = config.tile_px
    if codec.by_tifffile is not None:
        writer.write(level, photometric="rgb", tile=(side, side), compression=codec.by_tifffile,
                     predictor=codec.predictor, description=words, metadata=None, software=False,
                     maxworkers=1, **tags)  # fmt: skip
        return
    tiles = (codec.encode(tile) for tile in _tiles(level, side))
    writer.write(tiles, shape=level.shape, dtype=np.uint8, tile=(side, side), description=words,
                 metadata=None, software=False, maxworkers=1, **codec.tags(side), **tags)  # fmt: skip


def _write_strips(writer: tifffile.TiffWriter, image: Rgb, words: str, subfiletype: int) -> None:
    """An image as JPEG strips of 16 rows, as Aperio stores thumbnails, labels and macros."""
    codec = TileCodec("jpeg", 80)
    rows = 16
    strips = (
        codec.encode(np.ascontiguousarray(image[top : top + rows])) for top in range(0, image.shape[0], rows)
    )
    writer.write(strips, shape=image.shape, dtype=np.uint8, rowsperstrip=rows, description=words,
                 metadata=None, software=False, subfiletype=subfiletype, maxworkers=1,
                 **codec.tags(rows))  # fmt: skip


def _tiles(level: Rgb, side: int) -> Iterator[Rgb]:
    """Row-major tiles of (side, side, 3); the last ones repeat the edge."""
    height_px, width_px = level.shape[:2]
    for top in range(0, height_px, side):
        for left in range(0, width_px, side):
            tile = level[top : top + side, left : left + side]
            missing = (side - tile.shape[0], side - tile.shape[1])
            if any(missing):
                tile = np.pad(tile, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
            yield np.ascontiguousarray(tile)


def _fitted(image: Rgb, longest_px: int) -> Rgb:
    scale = min(1.0, longest_px / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[no-any-return]  # cv2 has no types
