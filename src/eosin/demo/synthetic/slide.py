"""One synthetic slide: a JPEG pyramid as a tiled TIFF, in the order and words of an Aperio scanner."""

import io
import re
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import simplejpeg
import tifffile

from eosin.demo.synthetic.config import SyntheticConfig, slide_fingerprint
from eosin.demo.synthetic.scene import Rgb, draw_slide
from eosin.storage import ByteRange, NotFound, Store

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_DQT, _DHT, _SOF, _SOS = 0xDB, 0xC4, 0xC0, 0xDA
_JPEG = 7
_LIBRARY = "Aperio Image Library v12.0.15"
_FINGERPRINT = re.compile(rb"Synthetic = ([0-9a-f]{16})\b")
_HEAD_BYTES = 4096
_LABEL, _MACRO = 1, 9
_STRIP_ROWS, _STRIP_QUALITY = 16, 80
_PLAIN: dict[str, Any] = {"metadata": None, "software": False, "maxworkers": 1}


def publish_slide(store: Store, key: str, *, seed: int, config: SyntheticConfig | None = None) -> None:
    """Draw the slide of `seed` and publish it at `key`, unless one of the same seed and config is there."""
    config = config or SyntheticConfig()
    fingerprint = slide_fingerprint(seed, config)
    if read_fingerprint(store, key) != fingerprint:
        name = key.rpartition("/")[2].rpartition(".")[0]
        store.put(key, _encode(draw_slide(seed, config), name, config, fingerprint))


def read_fingerprint(store: Store, key: str) -> str | None:
    """The fingerprint in the first page's description; None where no slide of this generator is.

    The description is among the first things in the file, before the first tile.
    """
    try:
        (head,) = store.get_ranges([ByteRange(key, 0, _HEAD_BYTES)])
    except NotFound:
        return None
    found = _FINGERPRINT.search(head)
    return found[1].decode() if found else None


def _encode(pixels: Rgb, name: str, config: SyntheticConfig, fingerprint: str) -> bytes:
    """The file of a slide: level-0 `pixels`, (height, width, 3), and the levels and images beside them."""
    buffer = io.BytesIO()
    levels = _levels(pixels, config.downsamples)
    full = f"{pixels.shape[1]}x{pixels.shape[0]}"
    tail = (
        f"|AppMag = {10 / config.mpp:g}|MPP = {config.mpp:.4f}|Left = 0.0|Top = 0.0"
        f"|OriginalWidth = {pixels.shape[1]}|OriginalHeight = {pixels.shape[0]}|Synthetic = {fingerprint}"
    )
    codec = f"JPEG/YCC Q={config.quality}"
    tiled = f"({config.tile_px}x{config.tile_px}) {codec}"
    with tifffile.TiffWriter(buffer, byteorder="<") as writer:
        _write_tiles(writer, pixels, config, f"{_LIBRARY}\r\n{full} {tiled}{tail}")
        thumbnail = _fitted(
            levels[-1] if max(levels[-1].shape) >= 512 else levels[min(1, len(levels) - 1)], 1024
        )
        size = f"{thumbnail.shape[1]}x{thumbnail.shape[0]}"
        _write_strips(writer, thumbnail, f"{_LIBRARY}\n{full} -> {size} - {tail}", 0)
        for level in levels[1:]:
            words = f"{_LIBRARY}\r\n{full} {tiled} -> {level.shape[1]}x{level.shape[0]} {codec}{tail}"
            _write_tiles(writer, level, config, words)
        label = _label(name)
        for what, image, kind in (("label", label, _LABEL), ("macro", _macro(pixels, label), _MACRO)):
            _write_strips(writer, image, f"{_LIBRARY}\n{what} {image.shape[1]}x{image.shape[0]}", kind)
    return buffer.getvalue()


def _levels(pixels: Rgb, downsamples: tuple[int, ...]) -> list[Rgb]:
    """Each level is an area average of the one before; sizes are rounded down, as Aperio does."""
    height_px, width_px = pixels.shape[:2]
    levels = [pixels]
    for downsample in downsamples[1:]:
        size = (width_px // downsample, height_px // downsample)
        levels.append(cv2.resize(levels[-1], size, interpolation=cv2.INTER_AREA))
    return levels


def _label(name: str) -> Rgb:
    """A paper label with the slide's name."""
    label = np.full((320, 320, 3), 250, np.uint8)
    cv2.rectangle(label, (8, 8), (311, 311), (120, 120, 120), 2)
    cv2.putText(label, name[:14], (20, 170), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (20, 20, 60), 2, cv2.LINE_AA)
    return label


def _macro(pixels: Rgb, label: Rgb) -> Rgb:
    """A view of the whole glass with the label at its left."""
    macro = np.full((320, 960, 3), 236, np.uint8)
    macro[:, :320] = label
    scale = min(280 / pixels.shape[0], 600 / pixels.shape[1])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    macro[20 : 20 + size[1], 340 : 340 + size[0]] = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return macro


def _write_tiles(writer: tifffile.TiffWriter, level: Rgb, config: SyntheticConfig, words: str) -> None:
    side = config.tile_px
    tiles = (_abbreviated(_jpeg(tile, config.quality)) for tile in _tiles(level, side))
    writer.write(
        tiles, shape=level.shape, dtype=np.uint8, tile=(side, side), description=words,
        **_jpeg_tags(side, config.quality), **_PLAIN,
    )  # fmt: skip


def _write_strips(writer: tifffile.TiffWriter, image: Rgb, words: str, subfiletype: int) -> None:
    """An image as JPEG strips of 16 rows, as Aperio stores thumbnails, labels and macros."""
    parts = (image[top : top + _STRIP_ROWS] for top in range(0, image.shape[0], _STRIP_ROWS))
    strips = (_abbreviated(_jpeg(np.ascontiguousarray(part), _STRIP_QUALITY)) for part in parts)
    writer.write(
        strips, shape=image.shape, dtype=np.uint8, rowsperstrip=_STRIP_ROWS, description=words,
        subfiletype=subfiletype, **_jpeg_tags(_STRIP_ROWS, _STRIP_QUALITY), **_PLAIN,
    )  # fmt: skip


def _tiles(level: Rgb, side: int) -> Iterator[Rgb]:
    """Row-major tiles of (side, side, 3); the last ones repeat the edge."""
    height_px, width_px = level.shape[:2]
    for top in range(0, height_px, side):
        for left in range(0, width_px, side):
            tile = level[top : top + side, left : left + side]
            missing = ((0, side - tile.shape[0]), (0, side - tile.shape[1]), (0, 0))
            yield np.pad(tile, missing, mode="edge")


def _fitted(image: Rgb, longest_px: int) -> Rgb:
    scale = min(1.0, longest_px / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[no-any-return]  # cv2 has no types


def _jpeg(tile: Rgb, quality: int) -> bytes:
    return bytes(simplejpeg.encode_jpeg(tile, quality=quality, colorspace="RGB", colorsubsampling="420"))


def _jpeg_tags(side_px: int, quality: int) -> dict[str, Any]:
    """Arguments of `TiffWriter.write` for a page of abbreviated JPEG streams that share their tables."""
    whole = _jpeg(np.zeros((side_px, side_px, 3), np.uint8), quality)
    tables = b"".join(part for code, part in _segments(whole) if code in (_DQT, _DHT))
    return {
        "compression": _JPEG, "photometric": "ycbcr", "subsampling": (2, 2),
        "jpegtables": _SOI + tables + _EOI,
    }  # fmt: skip


def _abbreviated(jpeg: bytes) -> bytes:
    """`jpeg` without tables and application markers."""
    return _SOI + b"".join(part for code, part in _segments(jpeg) if code in (_SOF, _SOS))


def _segments(jpeg: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker segments after SOI as (code, bytes with marker); the last one is SOS with all that follows."""
    at = 2
    while jpeg[at + 1] != _SOS:
        length = 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        yield jpeg[at + 1], jpeg[at : at + length]
        at += length
    yield _SOS, jpeg[at:]
