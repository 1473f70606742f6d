"""Frames of a DICOM object: where their bytes lie, and which tile of the level's grid each of them is."""

import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from eosin.slides.errors import SlideError
from eosin.slides.model import TILE_DTYPE, BinaryFile, TileTable
from eosin.slides.table import MAX_LEVEL_TILES, make_table

_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_UNDEFINED = 0xFFFFFFFF
_MAX_TABLE_BYTES = 64 * 2**20
_WINDOW_BYTES = 2**20


class SizedFile(BinaryFile, Protocol):
    """A seekable file of bytes whose size is known."""

    size_bytes: int


def frame_table(
    file: SizedFile, dataset: Any, pixels_at: int, num_frames: int, frame_bytes: int
) -> tuple[TileTable, bool]:
    """Offset and size of every frame, in frame order, and whether the pixels were read to find them.

    Raises `SlideError` for a damaged pixel element.
    """
    if not 0 < num_frames <= MAX_LEVEL_TILES:
        raise SlideError("corrupt-header", f"it announces {num_frames} frames")
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    header = _read(file, pixels_at, 12)
    if header[:4] != b"\xe0\x7f\x10\x00":
        raise SlideError("truncated", "its header ends without pixel data")
    if syntax == "1.2.840.10008.1.2":
        return _native(pixels_at + 8, num_frames, frame_bytes, file.size_bytes), False
    length = struct.unpack_from("<I", header, 8)[0]
    if length != _UNDEFINED:
        return _native(pixels_at + 12, num_frames, frame_bytes, file.size_bytes), False
    return _encapsulated(file, dataset, pixels_at + 12, num_frames)


def _native(start: int, num_frames: int, frame_bytes: int, end: int) -> TileTable:
    if start + num_frames * frame_bytes > end:
        raise SlideError(
            "truncated", f"{num_frames} frames of {frame_bytes} bytes do not fit its {end} bytes"
        )
    offsets = start + frame_bytes * np.arange(num_frames, dtype=np.int64)
    return make_table(offsets, np.full(num_frames, frame_bytes, np.int64))


def _encapsulated(file: SizedFile, dataset: Any, start: int, num_frames: int) -> tuple[TileTable, bool]:
    table_bytes = _item_length(file, start)
    first_item = start + 8 + table_bytes
    extended, lengths = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    try:
        if extended and lengths:
            return _extended(file, extended, lengths, first_item, num_frames), False
        if table_bytes:
            return _basic(file, start + 8, table_bytes, num_frames), False
    except SlideError as wrong:  # zeros, or offsets past 4 GiB in 32 bits
        if wrong.reason != "corrupt-header":
            raise
        with suppress(SlideError):
            return _walk(file, first_item, num_frames), True
        raise
    return _walk(file, first_item, num_frames), True


def _extended(
    file: SizedFile, extended: bytes, lengths: bytes, first_item: int, num_frames: int
) -> TileTable:
    if not len(extended) == len(lengths) == 8 * num_frames:
        raise SlideError("corrupt-header", f"{len(extended) // 8} offsets for {num_frames} frames")
    offsets, sizes = np.frombuffer(extended, "<u8"), np.frombuffer(lengths, "<u8")
    # wsidicom counts the header of a frame's item: no frame reaches into the next one.
    order, sizes = np.argsort(offsets), sizes.astype(np.int64)
    room = np.diff(offsets[order].astype(np.int64)) - 8
    sizes[order[:-1]] = np.minimum(sizes[order[:-1]], room)
    return _by_offsets(file, offsets, sizes, first_item)


def _basic(file: SizedFile, table_at: int, table_bytes: int, num_frames: int) -> TileTable:
    """The basic offset table: offsets only, so a frame's size is the way to the next one."""
    if table_bytes != 4 * num_frames or table_bytes > _MAX_TABLE_BYTES:
        raise SlideError("corrupt-header", f"{table_bytes} bytes of offsets for {num_frames} frames")
    offsets = np.frombuffer(_read(file, table_at, table_bytes), "<u4").astype(np.int64)
    first_item = table_at + table_bytes
    last = first_item + int(offsets[-1])
    sizes = np.append(np.diff(offsets) - 8, _end_of_items(file, last) - last - 8)
    if (sizes < 0).any():
        raise SlideError("corrupt-header", "its frame offsets do not ascend")
    return _by_offsets(file, offsets, sizes, first_item)


def _by_offsets(
    file: SizedFile, offsets: npt.NDArray[Any], sizes: npt.NDArray[Any], first_item: int
) -> TileTable:
    """Checks on three frames that each is made of whole items; what lies between them `joined` takes out."""
    for i in sorted({0, len(offsets) // 2, len(offsets) - 1}):
        start = first_item + int(offsets[i])
        end = start + 8 + int(sizes[i])
        if not -1 <= _end_of_items(file, start, end) - end <= 1:
            raise SlideError("corrupt-header", f"frame {i} is not where the offsets say")
    return make_table(offsets.astype(np.int64) + first_item + 8, sizes.astype(np.int64))


def _end_of_items(file: SizedFile, at: int, until: int | None = None) -> int:
    """Where the items that begin at `at` end: at the first one past `until`, or with the last of all."""
    num = 0
    while until is None or at + 1 < until:
        if num and (at + 8 > file.size_bytes or _read(file, at, 4) == _END):
            break
        at += 8 + _item_length(file, at)
        num += 1
    return at


def _walk(file: SizedFile, first_item: int, num_frames: int) -> TileTable:
    """Item by item: each header says where the next one is.

    The headers lie among the pixels, so the object is read from end to end in windows; only items larger
    than a window are leapt over. Of more items than frames a frame begins with each that begins as the first.
    """
    starts: list[int] = []
    begins: list[bytes] = []
    at, window_at, window = first_item, first_item, b""
    while len(starts) <= MAX_LEVEL_TILES and at + 8 <= file.size_bytes:
        if at + 10 > window_at + len(window):
            window_at, window = at, _read(file, at, min(_WINDOW_BYTES, file.size_bytes - at))
        head = window[at - window_at :][:10]
        if head[:4] == _END:
            break
        if len(starts) == num_frames and head[:4] != _ITEM:  # some writers leave the end out
            break
        starts.append(at)
        begins.append(head[8:])
        at += 8 + _length_of(head[:8], at)
    if num_frames > 1 and len(starts) > num_frames:
        starts = [each for each, begin in zip(starts, begins, strict=True) if begin == begins[0]]
    if num_frames == 1:
        starts = starts[:1]
    if len(starts) != num_frames:
        raise SlideError("truncated" if len(starts) < num_frames else "unsupported-layout",
                         f"{len(begins)} items for {num_frames} frames")  # fmt: skip
    offsets = np.array(starts, np.int64) + 8
    return make_table(offsets, np.diff(np.append(offsets, at + 8)) - 8)


def joined(frame: bytes) -> bytes:
    """The bytes of a frame without the headers of the items between its fragments (PS3.5 A.4).

    A header is told by its length: from there to the next one, or to the end.
    """
    parts, end, at = [], len(frame), len(frame)
    while (at := frame.rfind(_ITEM, 0, at)) >= 0:  # from the end, which Python searches three times as fast
        if at + 8 + int.from_bytes(frame[at + 4 : at + 8], "little") == end:
            parts.append(frame[at + 8 : end])
            end = at
    return b"".join([frame[:end], *reversed(parts)]) if parts else frame


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


_Z_DECIMALS_MM = 7


@dataclass(frozen=True)
class FrameGrid:
    """The extent of a level and of its tiles in pixels, and how many pictures of it there are."""

    width_px: int
    height_px: int
    tile_width_px: int
    tile_height_px: int
    num_planes: int = 1
    """Focal planes."""
    num_paths: int = 1
    """Optical paths."""

    @property
    def num_tiles_x(self) -> int:
        """Columns of the tile grid."""
        return -(-self.width_px // self.tile_width_px)

    @property
    def num_tiles(self) -> int:
        """Tiles of one picture."""
        return self.num_tiles_x * -(-self.height_px // self.tile_height_px)


@dataclass(frozen=True)
class Frames:
    """Frames of an object with the tile, height and optical path of each, as its functional groups say."""

    table: TileTable
    tiles: npt.NDArray[np.int64]
    """Row-major numbers in the level's grid."""
    z_mm: npt.NDArray[np.float64]
    paths: npt.NDArray[np.int64]
    """Places of their optical paths in the object's sequence of them."""


@dataclass(frozen=True)
class Placed:
    """The row-major table of a level, [num_tiles]; tiles without a frame are empty."""

    tiles: TileTable
    num_planes: int
    """Focal planes that there are; the middle one was taken."""


def place_in_order(grid: FrameGrid, frames: TileTable, first_frame: int | None) -> Placed:
    """Frames of TILED_FULL: row by row, then plane by plane, then path by path (PS3.3 C.7.6.17.3).

    `first_frame`: of a part of a concatenation; None: the object holds all of them. Raises `SlideError`
    where frames are missing.
    """
    middle = (grid.num_planes - 1) // 2 * grid.num_tiles
    if first_frame is None and len(frames) < middle + grid.num_tiles:
        raise SlideError("corrupt-header", f"{len(frames)} frames for a level of {grid.num_tiles} tiles")
    numbers = np.arange(len(frames)) + (first_frame or 0) - middle
    inside = (numbers >= 0) & (numbers < grid.num_tiles)
    table = np.zeros(grid.num_tiles, TILE_DTYPE)
    table[numbers[inside]] = frames[inside]
    return Placed(table, grid.num_planes)


def positioned(grid: FrameGrid, frames: TileTable, groups: Sequence[Any], dataset: Any) -> Frames:
    """Frames where their per-frame functional groups say that they are.

    Raises `SlideError` for frames that are not on the grid.
    """
    if len(groups) != len(frames):
        raise SlideError("corrupt-header", f"{len(groups)} frame positions for {len(frames)} frames")
    column, row, z_mm = (np.array(each) for each in zip(*map(_position, groups), strict=True))
    _refuse_off_grid(grid, column, row)
    tiles = row // grid.tile_height_px * grid.num_tiles_x + column // grid.tile_width_px
    return Frames(frames, tiles, z_mm, _paths(groups, dataset))


def place_by_position(grid: FrameGrid, parts: Sequence[Frames]) -> Placed:
    """The level that frames of one object, or of all parts of a concatenation, make up.

    Of several optical paths the first is taken, of several focal planes of a tile the middle one (a scanner
    that follows the tissue gives every tile a height of its own). Raises `SlideError` where tiles are missing
    while others come twice.
    """
    tiles, z_mm, paths = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("tiles", "z_mm", "paths")
    )
    chosen = np.flatnonzero(paths == paths.min())
    tiles, z_mm, frames = tiles[chosen], z_mm[chosen], np.concatenate([part.table for part in parts])[chosen]
    order = np.lexsort((z_mm, tiles))  # stable: the first frame of a place and plane stands
    is_first = np.diff(z_mm[order], prepend=np.nan) != 0
    is_first |= np.diff(tiles[order], prepend=-1) != 0
    order, num_twice = order[is_first], int((~is_first).sum())
    filled, starts, counts = np.unique(tiles[order], return_index=True, return_counts=True)
    if num_twice and len(filled) < grid.num_tiles:
        raise SlideError("corrupt-header", f"{num_twice} of its frames lie where another one lies")
    table = np.zeros(grid.num_tiles, TILE_DTYPE)
    table[filled] = frames[order[starts + (counts - 1) // 2]]
    return Placed(table, int(counts.max()))


def _position(group: Any) -> tuple[int, int, float]:
    """Column and row of a frame's corner, from 0, and its Z offset in mm."""
    found = group.get("PlanePositionSlideSequence")
    if not found:
        raise SlideError("corrupt-header", "some of its frames have no position")
    position = found[0]
    z_mm = position.get("ZOffsetInSlideCoordinateSystem")
    return (
        int(position.ColumnPositionInTotalImagePixelMatrix) - 1,
        int(position.RowPositionInTotalImagePixelMatrix) - 1,
        round(float(z_mm or 0.0), _Z_DECIMALS_MM),
    )


def _paths(groups: Sequence[Any], dataset: Any) -> npt.NDArray[np.int64]:
    """Numbers of the frames' optical paths: as the object lists them, others as they come."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or [{}]
    found = [group.get("OpticalPathIdentificationSequence") for group in (*shared[:1], *groups)]
    if found[0]:  # one for all of its frames
        found = found[:1] * len(found)
    names = [str(each[0].get("OpticalPathIdentifier", "")) if each else "" for each in found[1:]]
    listed = [str(each.get("OpticalPathIdentifier", "")) for each in dataset.get("OpticalPathSequence") or []]
    numbers = {name: number for number, name in enumerate(dict.fromkeys((*listed, *names)))}
    return np.array([numbers[name] for name in names])


def _refuse_off_grid(grid: FrameGrid, column: npt.NDArray[Any], row: npt.NDArray[Any]) -> None:
    outside = (column < 0) | (column >= grid.width_px) | (row < 0) | (row >= grid.height_px)
    between = (column % grid.tile_width_px != 0) | (row % grid.tile_height_px != 0)
    for wrong, reason, what in (
        (outside, "corrupt-header", "lies outside the image"),
        (between, "unsupported-layout", "is not on the tile grid"),
    ):
        if wrong.any():
            first = int(np.argmax(wrong))
            raise SlideError(reason, f"a frame at ({int(column[first])}, {int(row[first])}) {what}")
