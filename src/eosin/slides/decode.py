"""Decoding of one tile, or a rectangle of it: compressed bytes of any kind to pixels.

A random patch of 224 px needs half of the pixels of its 240 px tiles. The compiled module that leaves out
the others is optional: without it, and for tiles that are not plain JPEG, the whole tile is decoded, and
the pixels are the same.
"""

import io
import math
import struct
from collections.abc import Sequence
from functools import lru_cache

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image

from eosin.slides.errors import SlideError
from eosin.slides.jpeg import decode_jpeg, table_segments
from eosin.slides.model import Level, num_samples
from eosin.slides.region import WHITE, TilePart, is_tile_size, whole_tile

_CODESTREAM = b"\xff\x4f\xff\x51"
_CHROMA = np.arange(256) - 128
_CR_TO_RED = np.round(1.402 * _CHROMA).astype(np.int32)
_CB_TO_BLUE = np.round(1.772 * _CHROMA).astype(np.int32)
# Green takes from both: kept as 16.16 fixed point until they are summed.
_CB_TO_GREEN = np.round(-0.34414 * 65536 * _CHROMA).astype(np.int32)
_CR_TO_GREEN = np.round(-0.71414 * 65536 * _CHROMA).astype(np.int32)
_HALF = 1 << 15
_THIN_PX = 1e-3


def decode_jpeg2000(level: Level, data: bytes) -> npt.NDArray[np.uint8]:
    """[h, w, 3] of a JPEG 2000 tile, at full size.

    Raises `SlideError`: `corrupt-tile` for damage, or for dimensions no tile of the level has; the size is
    read from the SIZ marker first, so that a damaged tile cannot ask for gigabytes. `unsupported-pixels`
    where the header's word on colour contradicts the codestream's component transform.
    """
    width, height, subsampled = _size(data)
    if not is_tile_size(level, width, height):
        raise SlideError("corrupt-tile", f"a JPEG 2000 tile is {width} × {height} px")
    if level.color_space.endswith("transformed"):
        _check_transform(data, level.color_space == "rgb-transformed")
    try:
        # High-throughput codestreams too: OpenJPH (htj2k_decode) gives noise for damage, and says nothing.
        decoded = _decode_subsampled(data) if subsampled else imagecodecs.jpeg2k_decode(data)
        pixels: npt.NDArray[np.uint8] = np.asarray(decoded)
    except (imagecodecs.Jpeg2kError, ValueError, OSError) as error:
        raise SlideError("corrupt-tile", f"a JPEG 2000 tile cannot be decoded: {error}") from error
    if pixels.dtype != np.uint8 or pixels.shape[:2] != (height, width):
        raise SlideError("corrupt-tile", f"a JPEG 2000 tile holds {pixels.dtype} of shape {pixels.shape}")
    if level.color_space.startswith("gray"):
        return pixels
    if pixels.ndim != 3 or pixels.shape[2] < 3:
        raise SlideError("corrupt-tile", "a JPEG 2000 tile of a colour slide has no colour")
    return ycbcr_to_rgb(pixels) if level.color_space.startswith("ycbcr") else pixels


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


def _check_transform(data: bytes, wanted: bool) -> None:
    """The component transform, in the COD marker (ISO 15444-1, A.6.1), is to be there, or not to be."""
    at = data.find(b"\xff\x52", data.find(_CODESTREAM, 0, 4096), 8192)
    if at < 0 or len(data) < at + 9:
        raise SlideError("corrupt-tile", "a JPEG 2000 tile does not say how it is coded")
    if bool(data[at + 8]) != wanted:
        said = (
            "with a component transform is called YCbCr"
            if not wanted
            else "lacks the component transform that its header names"
        )
        raise SlideError("unsupported-pixels", f"JPEG 2000 that {said}: RGB or YCbCr, nothing says")


def _decode_subsampled(data: bytes) -> npt.NDArray[np.uint8]:
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


SCALE_DENOMINATORS = (1, 2, 4, 8)
Pixels = npt.NDArray[np.uint8]


def decode_tile(level: Level, data: bytes, scale_denominator: int = 1) -> Pixels:
    """RGB pixels [h, w, 3], uint8, of a tile, edge tiles in full tile size.

    `scale_denominator` 1, 2, 4 or 8 gives [ceil(h / d), ceil(w / d), 3]: in the DCT domain for JPEG, by
    area averaging otherwise. Transparent is white, gray is repeated. Raises `SlideError` (`corrupt-tile`)
    where the bytes are not such a tile, ValueError for another denominator.
    """
    if scale_denominator not in SCALE_DENOMINATORS:
        raise ValueError(f"scale_denominator {scale_denominator} is not one of {SCALE_DENOMINATORS}")
    if level.compression == "jpeg":
        return decode_jpeg(level, data, scale_denominator)
    decode = _DECODERS.get(level.compression, _decode_raw)
    pixels = whole_tile(level, _as_rgb(decode(level, data), level.color_space.partition("+")[2]))
    return _scaled(pixels, scale_denominator)


def _decode_jpegls(level: Level, data: bytes) -> Pixels:
    """JPEG-LS; the frame header (ITU-T T.87, C.2.2) is read first, so that no tile can ask for gigabytes."""
    at = data.find(b"\xff\xf7", 0, 4096)
    size = (int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big"))
    if at < 0 or not is_tile_size(level, *size):
        raise SlideError("corrupt-tile", f"a tile is no JPEG-LS of {level.tile_width_px} px")
    try:
        pixels: Pixels = np.asarray(imagecodecs.jpegls_decode(data))
    except (imagecodecs.JpeglsError, ValueError) as error:
        raise SlideError("corrupt-tile", f"a JPEG-LS tile cannot be decoded: {error}") from error
    wanted = 2 if level.color_space == "gray" else 3
    if pixels.dtype != np.uint8 or pixels.ndim != wanted:
        raise SlideError("corrupt-tile", f"a JPEG-LS tile holds {pixels.dtype} of shape {pixels.shape}")
    return ycbcr_to_rgb(pixels) if level.color_space == "ycbcr" else pixels


def _decode_jpegxl(level: Level, data: bytes) -> Pixels:
    wanted: tuple[int, ...] = (level.tile_height_px, level.tile_width_px)
    pixels: Pixels = np.empty(wanted if level.color_space == "gray" else (*wanted, 3), np.uint8)
    try:  # of another size it is refused before it is decoded
        return np.asarray(imagecodecs.jpegxl_decode(data, out=pixels))
    except (imagecodecs.JpegxlError, RuntimeError, ValueError) as error:
        raise SlideError("corrupt-tile", f"a JPEG XL tile cannot be decoded: {error}") from error


def _decode_webp(level: Level, data: bytes) -> Pixels:
    pixels: Pixels = np.empty((level.tile_height_px, level.tile_width_px, num_samples(level)), np.uint8)
    try:  # of another size it is refused before it is decoded
        imagecodecs.webp_decode(data, hasalpha=pixels.shape[2] == 4, out=pixels)
    except (imagecodecs.WebpError, ValueError) as error:
        raise SlideError("corrupt-tile", f"a WebP tile cannot be decoded: {error}") from error
    return pixels


def _decode_rle(level: Level, data: bytes) -> Pixels:
    """DICOM's run lengths (PS3.5, annex G): the plane of one colour after the other."""
    shape = (num_samples(level), level.tile_height_px, level.tile_width_px)
    try:  # imagecodecs' decoder of the whole ends the process on damaged offsets
        num, *starts = struct.unpack_from("<16I", data)
        ends = [*starts[1 : shape[0]], len(data)]
        if num != shape[0] or not all(64 <= start < end for start, end in zip(starts, ends, strict=False)):
            raise ValueError(f"it has {num} planes from bytes {starts[: shape[0]]}")
        unpacked = [
            _unpacked(data[start:end], shape[1] * shape[2]) for start, end in zip(starts, ends, strict=False)
        ]
        planes = np.frombuffer(b"".join(unpacked), np.uint8).reshape(shape)
    except (imagecodecs.PackbitsError, struct.error, ValueError) as error:
        raise SlideError("corrupt-tile", f"a run-length tile cannot be decoded: {error}") from error
    pixels = np.ascontiguousarray(planes.transpose(1, 2, 0))
    return ycbcr_to_rgb(pixels) if level.color_space == "ycbcr" else pixels


def _unpacked(data: bytes, most_bytes: int) -> bytes:
    """Run lengths, which a zero may follow that makes their number even."""
    try:
        return bytes(imagecodecs.packbits_decode(data, out=most_bytes))
    except imagecodecs.PackbitsError:
        if data[-1:] != b"\0":
            raise
        return bytes(imagecodecs.packbits_decode(data[:-1], out=most_bytes))


def _decode_raw(level: Level, data: bytes) -> Pixels:
    """Uncompressed and losslessly packed tiles; the output buffer bounds what a hostile one can unfold to."""
    samples = level.tile_height_px * level.tile_width_px
    flat: bytes | bytearray
    try:
        if level.compression == "lzw":
            flat = _unlzw(data, level.tile_width_px * num_samples(level), level.tile_height_px)
        elif level.compression == "deflate":
            flat = imagecodecs.zlib_decode(data, out=4 * samples + 1)
        elif level.compression == "packbits":
            flat = imagecodecs.packbits_decode(data, out=4 * samples + 1)
        elif level.compression == "zstd":
            flat = imagecodecs.zstd_decode(data, out=4 * samples + 1)
        elif level.compression == "none":
            flat = data
        else:
            raise SlideError("unsupported-compression", "its tiles are read through OpenSlide only")
    except (
        imagecodecs.ZlibError,
        imagecodecs.ZstdError,
        imagecodecs.PackbitsError,
        ValueError,
        OSError,
    ) as error:
        raise SlideError("corrupt-tile", f"a {level.compression} tile cannot be decoded: {error}") from error
    return _shape(level, np.frombuffer(flat, np.uint8))


def _unlzw(data: bytes, row_bytes: int, num_rows: int) -> bytes:
    """By libtiff, of a gray TIFF of one strip: imagecodecs' decoder ends the process on damaged data."""
    entries = ((256, row_bytes), (257, num_rows), (258, 8), (259, 5), (262, 1), (273, 8 + 2 + 9 * 12 + 4),
               (277, 1), (278, num_rows), (279, len(data)))  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    tiff = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory + bytes(4) + data
    with Image.open(io.BytesIO(tiff), formats=("TIFF",)) as image:
        return bytes(image.tobytes())


def _shape(level: Level, flat: Pixels) -> Pixels:
    num_samples, odd = divmod(len(flat), level.tile_height_px * level.tile_width_px)
    wanted = (1, 2) if level.color_space.startswith("gray") else (3, 4)
    if odd or num_samples not in wanted:
        raise SlideError("corrupt-tile", f"a {level.compression} tile unfolds to {len(flat)} bytes")
    pixels = flat.reshape(level.tile_height_px, level.tile_width_px, num_samples)
    return np.cumsum(pixels, axis=1, dtype=np.uint8) if level.predictor == 2 else pixels


def _as_rgb(pixels: Pixels, alpha: str) -> Pixels:
    """[h, w, 3] of gray, gray with alpha, RGB or RGBA; what is transparent is white, as the glass is.

    `alpha`: what follows the + of `Level.color_space`.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] < 3:
        pixels = np.concatenate([np.repeat(pixels[..., :1], 3, axis=2), pixels[..., 1:]], axis=2)
    if pixels.shape[2] == 3 or alpha == "other":
        return np.ascontiguousarray(pixels[..., :3])
    if alpha == "premultiplied":
        clear = 255 - pixels[..., 3:]
        return np.asarray(np.minimum(pixels[..., :3].astype(np.uint16) + clear, 255), np.uint8)
    return over_white(pixels)


def over_white(rgba: Pixels) -> Pixels:
    """[h, w, 3] from straight-alpha [h, w, 4], composed over white."""
    alpha = rgba[..., 3:]
    if (alpha == 255).all():
        return np.ascontiguousarray(rgba[..., :3])
    colour, cover = rgba[..., :3].astype(np.uint16), alpha.astype(np.uint16)
    return ((colour * cover + 255 * (255 - cover) + 127) // 255).astype(np.uint8)


def _scaled(pixels: Pixels, denominator: int) -> Pixels:
    if denominator == 1:
        return pixels
    height, width = (-(-side // denominator) for side in pixels.shape[:2])
    scaled: Pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return scaled


_DECODERS = {
    "jpeg2000": decode_jpeg2000, "jpegls": _decode_jpegls, "jpegxl": _decode_jpegxl, "rle": _decode_rle,
    "webp": _decode_webp,
}  # fmt: skip

try:
    from eosin.slides import _jpeg_part
except ImportError:
    _jpeg_part = None  # type: ignore[assignment]  # where it was not built


def decodes_parts() -> bool:
    """Whether the compiled module is there."""
    return _jpeg_part is not None


def decode_parts(
    level: Level,
    scale_denominator: int,
    tiles: Sequence[bytes | Pixels | None],
    parts: Sequence[TilePart],
    region: Pixels,
) -> None:
    """Write into `region` [h, w, 3] what each tile of `level` gives to it, by its part.

    Parts are in pixels of tiles scaled by 1 / `scale_denominator`, as `decode_tile` scales them. A tile is
    its bytes, its scaled pixels, or None: white. Raises `SlideError` (`corrupt-tile`) as `decode_tile` does,
    except that damage behind a part may go unseen.
    """
    done = bytes(len(parts))
    if _jpeg_part is not None and level.compression == "jpeg":
        done = _jpeg_part.decode_parts(
            _head(level.jpeg_tables), level.color_space == "rgb", level.tile_width_px, level.tile_height_px,
            scale_denominator, tuple(tiles), tuple(parts), region,
        )  # fmt: skip
    for tile, part, is_done in zip(tiles, parts, done, strict=True):
        if is_done:
            continue
        pixels = decode_tile(level, tile, scale_denominator) if isinstance(tile, bytes) else tile
        part.of_region(region)[:] = WHITE if pixels is None else part.of_tile(pixels)


def shrink(region: Pixels, patch: Pixels) -> None:
    """Write `region` [h, w, 3] into `patch`, which is no larger either way, by area averaging, as OpenCV."""
    (height, width), (patch_height, patch_width) = region.shape[:2], patch.shape[:2]
    whole = height % patch_height == 0 and width % patch_width == 0  # for which OpenCV has a faster way
    if _jpeg_part is None or whole or not (region.flags.c_contiguous and patch.flags.c_contiguous):
        cv2.resize(region, (patch_width, patch_height), dst=patch, interpolation=cv2.INTER_AREA)
        return
    columns, rows = _shares(width, patch_width), _shares(height, patch_height)
    _jpeg_part.shrink(region, width, patch, patch_width, columns, rows)


@lru_cache(maxsize=1024)
def _shares(in_px: int, out_px: int) -> bytes:
    """How much of which input pixel goes into each output pixel: int32 in, int32 out, float32 share.

    An edge of less than a thousandth of a pixel counts for nothing, as in OpenCV.
    """
    scale, shares = 1.0 / (out_px / in_px), []
    for out in range(out_px):
        start, end = out * scale, out * scale + scale
        covered = min(scale, in_px - start)
        last = min(math.floor(end), in_px - 1)
        first = min(math.ceil(start), last)
        if first - start > _THIN_PX:
            shares.append((first - 1, out, (first - start) / covered))
        shares += [(pixel, out, 1.0 / covered) for pixel in range(first, last)]
        if end - last > _THIN_PX:
            shares.append((last, out, min(end - last, 1.0, covered) / covered))
    return np.array(shares, [("in", "<i4"), ("out", "<i4"), ("share", "<f4")]).tobytes()


@lru_cache(maxsize=256)
def _head(tables: bytes | None) -> bytes:
    """What takes the place of a tile's first marker: the marker and the shared tables."""
    return b"\xff\xd8" + table_segments(tables)
