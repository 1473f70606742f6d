"""Writing a pyramid as a tiled TIFF, in the order and with the words of an Aperio scanner."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import tifffile

from eosin.demo.synthetic.codecs import TileCodec
from eosin.demo.synthetic.config import SyntheticConfig

Rgb = npt.NDArray[np.uint8]
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
