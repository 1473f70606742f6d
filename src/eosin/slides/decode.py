"""Decoding of one tile: compressed bytes to pixels."""

from __future__ import annotations

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt

from eosin.slides.errors import SlideError
from eosin.slides.jpeg import decode_jpeg
from eosin.slides.jpeg2000 import decode_jpeg2000
from eosin.slides.model import Level

SCALE_DENOMINATORS = (1, 2, 4, 8)
Pixels = npt.NDArray[np.uint8]


def decode_tile(level: Level, data: bytes, scale_denominator: int = 1) -> Pixels:
    """RGB pixels [h, w, 3], uint8, of a tile, edge tiles in full tile size.

    `scale_denominator` 1, 2, 4 or 8 gives [ceil(h / d), ceil(w / d), 3]: in the DCT domain for JPEG, by
    area averaging otherwise. Alpha is dropped, gray is repeated. Raises `SlideError` (`corrupt-tile`)
    where the bytes are not such a tile, ValueError for another denominator.
    """
    if scale_denominator not in SCALE_DENOMINATORS:
        raise ValueError(f"scale_denominator {scale_denominator} is not one of {SCALE_DENOMINATORS}")
    if level.compression == "jpeg":
        return decode_jpeg(level, data, scale_denominator)
    decode = decode_jpeg2000 if level.compression == "jpeg2000" else _decode_raw
    return _scaled(_as_rgb(decode(level, data)), scale_denominator)


def _decode_raw(level: Level, data: bytes) -> Pixels:
    """Uncompressed, LZW and Deflate tiles; the output buffer bounds what a hostile tile can unfold to."""
    samples = level.tile_height_px * level.tile_width_px
    try:
        if level.compression == "lzw":
            flat = imagecodecs.lzw_decode(data, buffersize=4 * samples + 1)
        elif level.compression == "deflate":
            flat = imagecodecs.zlib_decode(data, out=4 * samples + 1)
        elif level.compression == "none":
            flat = data
        else:
            raise SlideError("unsupported-compression", "its tiles are read through OpenSlide only")
    except (imagecodecs.LzwError, imagecodecs.ZlibError, ValueError) as error:
        raise SlideError("corrupt-tile", f"a {level.compression} tile cannot be decoded: {error}") from error
    return _shape(level, np.frombuffer(flat, np.uint8))


def _shape(level: Level, flat: Pixels) -> Pixels:
    num_samples, odd = divmod(len(flat), level.tile_height_px * level.tile_width_px)
    wanted = (1, 2) if level.color_space == "gray" else (3, 4)
    if odd or num_samples not in wanted:
        raise SlideError("corrupt-tile", f"a {level.compression} tile unfolds to {len(flat)} bytes")
    pixels = flat.reshape(level.tile_height_px, level.tile_width_px, num_samples)
    return np.cumsum(pixels, axis=1, dtype=np.uint8) if level.predictor == 2 else pixels


def _as_rgb(pixels: Pixels) -> Pixels:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] in (1, 2):
        return np.repeat(pixels[..., :1], 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3])


def _scaled(pixels: Pixels, denominator: int) -> Pixels:
    if denominator == 1:
        return pixels
    height, width = (-(-side // denominator) for side in pixels.shape[:2])
    scaled: Pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return scaled
