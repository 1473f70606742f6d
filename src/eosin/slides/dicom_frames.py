"""Frame offsets of a DICOM object: native, by an offset table, or by a walk of the items."""

from __future__ import annotations

import struct
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from eosin.slides.errors import SlideError
from eosin.slides.model import TileTable
from eosin.slides.table import MAX_LEVEL_TILES, make_table

_ITEM = b"\xfe\xff\x00\xe0"
_UNDEFINED = 0xFFFFFFFF
_MAX_TABLE_BYTES = 64 * 2**20
_WINDOW_BYTES = 2**20


class SizedFile(Protocol):
    """A seekable file of bytes whose size is known."""

    size_bytes: int

    def read(self, length: int = -1) -> bytes:
        """At most `length` bytes from here; all that is left for -1."""
        ...

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to `offset`, as `io` counts it; returns the new place."""
        ...


def frame_table(
    file: SizedFile, dataset: Any, pixels_at: int, num_frames: int, frame_bytes: int
) -> TileTable:
    """Offset and size of every frame, in frame order. Raises `SlideError` for a damaged pixel element."""
    if not 0 < num_frames <= MAX_LEVEL_TILES:
        raise SlideError("corrupt-header", f"it announces {num_frames} frames")
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    header = _read(file, pixels_at, 12)
    if header[:4] != b"\xe0\x7f\x10\x00":
        raise SlideError("truncated", "its header ends without pixel data")
    if syntax == "1.2.840.10008.1.2":
        return _native(pixels_at + 8, num_frames, frame_bytes, file.size_bytes)
    length = struct.unpack_from("<I", header, 8)[0]
    if length != _UNDEFINED:
        return _native(pixels_at + 12, num_frames, frame_bytes, file.size_bytes)
    return _encapsulated(file, dataset, pixels_at + 12, num_frames)


def _native(start: int, num_frames: int, frame_bytes: int, end: int) -> TileTable:
    if start + num_frames * frame_bytes > end:
        raise SlideError(
            "truncated", f"{num_frames} frames of {frame_bytes} bytes do not fit its {end} bytes"
        )
    offsets = start + frame_bytes * np.arange(num_frames, dtype=np.int64)
    return make_table(offsets, np.full(num_frames, frame_bytes, np.int64))


def has_offset_table(file: SizedFile, dataset: Any, pixels_at: int) -> bool:
    """Whether frames are found without reading the pixels between them."""
    header = _read(file, pixels_at, 12)
    undefined = struct.unpack_from("<I", header, 8)[0] == _UNDEFINED
    implicit = str(dataset.file_meta.TransferSyntaxUID) == "1.2.840.10008.1.2"
    extended = bool(dataset.get("ExtendedOffsetTable"))
    return implicit or not undefined or extended or _item_length(file, pixels_at + 12) > 0


def _encapsulated(file: SizedFile, dataset: Any, start: int, num_frames: int) -> TileTable:
    table_bytes = _item_length(file, start)
    first_item = start + 8 + table_bytes
    extended, lengths = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    if extended and lengths:
        offsets, sizes = np.frombuffer(extended, "<u8"), np.frombuffer(lengths, "<u8")
        if len(offsets) != num_frames or len(sizes) != num_frames:
            raise SlideError("corrupt-header", f"{len(offsets)} offsets for {num_frames} frames")
        return _by_offsets(file, offsets, sizes, first_item)
    if table_bytes:
        return _basic(file, start + 8, table_bytes, num_frames)
    return _walk(file, first_item, num_frames)


def _basic(file: SizedFile, table_at: int, table_bytes: int, num_frames: int) -> TileTable:
    """The basic offset table: offsets only, so a frame's size is the way to the next one."""
    if table_bytes != 4 * num_frames or table_bytes > _MAX_TABLE_BYTES:
        raise SlideError("corrupt-header", f"{table_bytes} bytes of offsets for {num_frames} frames")
    offsets = np.frombuffer(_read(file, table_at, table_bytes), "<u4").astype(np.int64)
    first_item = table_at + table_bytes
    last = _item_length(file, first_item + int(offsets[-1]))
    sizes = np.append(np.diff(offsets) - 8, last)
    if (sizes < 0).any():
        raise SlideError("corrupt-header", "its frame offsets do not ascend")
    return _by_offsets(file, offsets, sizes, first_item)


def _by_offsets(
    file: SizedFile, offsets: npt.NDArray[Any], sizes: npt.NDArray[Any], first_item: int
) -> TileTable:
    """Checks on three frames that each is one item, which is what a single ranged read can fetch."""
    for i in sorted({0, len(offsets) // 2, len(offsets) - 1}):
        length = _item_length(file, first_item + int(offsets[i]))
        if not 0 <= length - int(sizes[i]) <= 1 and not 0 <= int(sizes[i]) - length <= 1:
            raise SlideError("unsupported-layout", f"frame {i} is stored in several fragments")
    return make_table(offsets.astype(np.int64) + first_item + 8, sizes.astype(np.int64))


def _walk(file: SizedFile, first_item: int, num_frames: int) -> TileTable:
    """Item by item: each header says where the next one is.

    The headers lie among the pixels, so the object is read from end to end in windows; only frames
    larger than a window are leapt over.
    """
    offsets, sizes = np.zeros(num_frames, np.int64), np.zeros(num_frames, np.int64)
    at, window_at, window = first_item, first_item, b""
    for i in range(num_frames):
        if at + 8 > window_at + len(window):
            window_at, window = at, _read(file, at, min(_WINDOW_BYTES, max(8, file.size_bytes - at)))
        sizes[i] = _length_of(window[at - window_at :][:8], at)
        offsets[i] = at + 8
        at += 8 + int(sizes[i])
    if at + 8 <= file.size_bytes and _read(file, at, 4) == _ITEM:
        raise SlideError("unsupported-layout", "its frames are stored in several fragments each")
    return make_table(offsets, sizes)


def _item_length(file: SizedFile, at: int) -> int:
    return _length_of(_read(file, at, 8), at)


def _length_of(header: bytes, at: int) -> int:
    if header[:4] != _ITEM:
        raise SlideError("corrupt-header", f"no DICOM item at byte {at}")
    length = int(struct.unpack_from("<I", header, 4)[0])
    if length == _UNDEFINED:
        raise SlideError("corrupt-header", f"the DICOM item at byte {at} has no length")
    return length


def _read(file: SizedFile, at: int, length: int) -> bytes:
    if at < 0 or at + length > file.size_bytes:
        raise SlideError("truncated", f"it ends before byte {at + length}")
    file.seek(at)
    data = file.read(length)
    if len(data) != length:
        raise SlideError("truncated", f"it ends before byte {at + length}")
    return data
