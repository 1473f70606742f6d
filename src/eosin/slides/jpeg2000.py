"""JPEG 2000 tiles, high-throughput ones and the YCbCr ones of Aperio's 33003 included."""

from __future__ import annotations

import io
import struct

import imagecodecs
import numpy as np
import numpy.typing as npt

from eosin.slides.errors import SlideError
from eosin.slides.model import Level

_CODESTREAM = b"\xff\x4f\xff\x51"
_CHROMA = np.arange(256) - 128
_CR_TO_RED = np.round(1.402 * _CHROMA).astype(np.int32)
_CB_TO_BLUE = np.round(1.772 * _CHROMA).astype(np.int32)
# Green takes from both: kept as 16.16 fixed point until they are summed.
_CB_TO_GREEN = np.round(-0.34414 * 65536 * _CHROMA).astype(np.int32)
_CR_TO_GREEN = np.round(-0.71414 * 65536 * _CHROMA).astype(np.int32)
_HALF = 1 << 15


def decode_jpeg2000(level: Level, data: bytes) -> npt.NDArray[np.uint8]:
    """[h, w, 3] of a JPEG 2000 tile, at full size.

    Raises `SlideError` (`corrupt-tile`) for damage, or for dimensions that are not the level's; the
    size is read from the SIZ marker first, so that a damaged tile cannot ask for gigabytes.
    """
    width, height, subsampled = _size(data)
    if (width, height) != (level.tile_width_px, level.tile_height_px):
        raise SlideError("corrupt-tile", f"a JPEG 2000 tile is {width} × {height} px")
    try:
        decode = imagecodecs.htj2k_decode if level.compression == "htj2k" else imagecodecs.jpeg2k_decode
        decoded = _decode_subsampled(data) if subsampled else decode(data)
        pixels: npt.NDArray[np.uint8] = np.asarray(decoded)
    except (imagecodecs.Jpeg2kError, imagecodecs.Htj2kError, ValueError, OSError) as error:
        raise SlideError("corrupt-tile", f"a JPEG 2000 tile cannot be decoded: {error}") from error
    if pixels.dtype != np.uint8 or pixels.shape[:2] != (height, width):
        raise SlideError("corrupt-tile", f"a JPEG 2000 tile holds {pixels.dtype} of shape {pixels.shape}")
    if level.color_space.startswith("gray"):
        return pixels
    if pixels.ndim != 3 or pixels.shape[2] < 3:
        raise SlideError("corrupt-tile", "a JPEG 2000 tile of a colour slide has no colour")
    return ycbcr_to_rgb(pixels) if level.color_space == "ycbcr" else pixels


def _size(data: bytes) -> tuple[int, int, bool]:
    """(width, height, whether a component is subsampled) from the SIZ marker (ISO 15444-1, A.5.1)."""
    start = data.find(_CODESTREAM, 0, 4096)
    if start < 0 or len(data) < start + 42:
        raise SlideError("corrupt-tile", "a tile is not JPEG 2000")
    x1, y1, x0, y0 = struct.unpack_from(">4I", data, start + 8)
    num_components = struct.unpack_from(">H", data, start + 40)[0]
    steps = data[start + 42 : start + 42 + 3 * num_components]
    subsampled = any(steps[i] != 1 for i in range(len(steps)) if i % 3)
    return x1 - x0, y1 - y0, subsampled


def _decode_subsampled(data: bytes) -> npt.NDArray[np.uint8]:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def ycbcr_to_rgb(ycbcr: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Full-range BT.601 (JFIF), [h, w, 3] uint8, rounded as OpenSlide rounds."""
    y = ycbcr[..., 0].astype(np.int32)
    cb, cr = ycbcr[..., 1], ycbcr[..., 2]
    green = y + ((_CB_TO_GREEN[cb] + _CR_TO_GREEN[cr] + _HALF) >> 16)
    planes = np.stack((y + _CR_TO_RED[cr], green, y + _CB_TO_BLUE[cb]), axis=-1)
    rgb: npt.NDArray[np.uint8] = np.clip(planes, 0, 255).astype(np.uint8)
    return rgb
