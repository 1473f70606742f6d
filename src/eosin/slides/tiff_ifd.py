"""TIFF and BigTIFF directories, read by byte range and with every count bounded.

General TIFF libraries read all that a directory announces; a hostile or damaged slide announces
terabytes. Here only wanted tags are read, nothing larger than `_MAX_VALUE_BYTES` is asked for, and a
chain of directories may neither loop nor go on for ever. Source: TIFF 6.0; BigTIFF (libtiff).
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from eosin.slides.errors import SlideError
from eosin.slides.model import BinaryFile

NEW_SUBFILE_TYPE = 254
IMAGE_WIDTH, IMAGE_LENGTH, BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
IMAGE_DESCRIPTION, MAKE, SAMPLES_PER_PIXEL, X_RESOLUTION, Y_RESOLUTION = 270, 271, 277, 282, 283
FILL_ORDER, ORIENTATION, PLANAR_CONFIGURATION, RESOLUTION_UNIT = 266, 274, 284, 296
SOFTWARE, PREDICTOR = 305, 317
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTE_COUNTS, SUB_IFDS = 322, 323, 324, 325, 330
EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES, XMP, ARGOS_METADATA, NDPI_FORMAT = 338, 339, 347, 700, 65000, 65420

_MAX_DIRECTORIES = 1000
_MAX_ENTRIES = 4096
_MAX_VALUE_BYTES = 64 * 2**20
_TYPES: dict[int, tuple[str, int]] = {
    1: ("u1", 1), 2: ("S1", 1), 3: ("u2", 2), 4: ("u4", 4), 5: ("u4", 8), 6: ("i1", 1), 7: ("u1", 1),
    8: ("i2", 2), 9: ("i4", 4), 10: ("i4", 8), 11: ("f4", 4), 12: ("f8", 8), 13: ("u4", 4), 16: ("u8", 8),
    17: ("i8", 8), 18: ("u8", 8),
}  # fmt: skip


@dataclass(slots=True)
class IfdEntry:
    """One tag: `count` values of TIFF type `kind` at byte `offset` of the file."""

    kind: int
    count: int
    offset: int
    inline: bytes = b""
    """The values, where they stand in the directory itself."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all values."""
        return self.count * _TYPES[self.kind][1]


@dataclass(frozen=True)
class Directory:
    """One image file directory; values are read on request."""

    tiff: "TiffFile"
    entries: dict[int, IfdEntry]
    position: int

    def has(self, tag: int) -> bool:
        """Whether the directory has the tag."""
        return tag in self.entries

    def raw(self, tag: int, most_bytes: int | None = None) -> bytes:
        """The bytes of a value, or the first `most_bytes` of them; empty where the tag is absent."""
        entry = self.entries.get(tag)
        if entry is None:
            return b""
        if most_bytes is not None and entry.num_bytes > most_bytes:
            return self.tiff.read(entry.offset, most_bytes)
        return self.tiff.read_value(entry)

    def array(self, tag: int) -> npt.NDArray[Any]:
        """The numbers of a value, in native byte order; empty where the tag is absent."""
        entry = self.entries.get(tag)
        if entry is None:
            return np.zeros(0, np.uint64)
        kind = np.dtype(self.tiff.order + _TYPES[entry.kind][0])
        return np.frombuffer(self.tiff.read_value(entry), kind)

    def integers(self, tag: int) -> npt.NDArray[np.integer[Any]]:
        """As `array`. Raises `SlideError` where the value is text or real numbers."""
        values = self.array(tag)
        if values.dtype.kind not in "iu":
            raise SlideError("corrupt-header", f"tag {tag} of a TIFF directory does not hold whole numbers")
        return values

    def integer(self, tag: int, default: int | None = None) -> int:
        """The first number of a value. Raises `SlideError` where it is absent without a default."""
        entry = self.entries.get(tag)
        if entry is not None and entry.inline and _TYPES[entry.kind][0][0] == "u":
            first = entry.inline[: int(_TYPES[entry.kind][0][1])]
            return int.from_bytes(first, self.tiff.byteorder)
        values = self.integers(tag)
        if len(values):
            return int(values[0])
        if default is None:
            raise SlideError("corrupt-header", f"TIFF directory at byte {self.position} has no tag {tag}")
        return default

    def rational(self, tag: int) -> float | None:
        """The first number of a value as a real one; None where it is absent, 0 / 0 or text."""
        values = self.array(tag)
        if len(values) >= 2 and self.entries[tag].kind in (5, 10):
            return float(values[0]) / float(values[1]) if values[1] else None
        return float(values[0]) if len(values) and values.dtype.kind in "uif" else None

    def text(self, tag: int, most_bytes: int | None = None) -> str:
        """A value (or its first `most_bytes`) as text up to its first NUL; empty where the tag is absent."""
        return self.raw(tag, most_bytes).split(b"\0")[0].decode("utf-8", "replace")


@dataclass
class TiffFile:
    """A TIFF of `size_bytes` behind a seekable file. Raises `SlideError` where it is none."""

    file: BinaryFile
    size_bytes: int
    look_ahead: Callable[[int], None] | None = None
    """Brings the bytes from an offset on, of a file that is read by range."""
    order: Literal["<", ">"] = field(init=False)
    byteorder: Literal["little", "big"] = field(init=False)
    big: bool = field(init=False)
    first: int = field(init=False)
    """Where the first directory is said to be."""

    def __post_init__(self) -> None:
        head = self.read(0, 16) if self.size_bytes >= 16 else b""
        if not is_tiff(head):
            raise SlideError("not-a-slide", "it does not begin as a TIFF")
        self.order, self.byteorder = ("<", "little") if head[:2] == b"II" else (">", "big")
        self.big = struct.unpack(self.order + "H", head[2:4])[0] == 43
        form, at = ("Q", 8) if self.big else ("I", 4)
        self.first = struct.unpack_from(self.order + form, head, at)[0]

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises `SlideError` (`truncated`) where the file ends before."""
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise SlideError(
                "truncated",
                f"its header points to bytes {offset} to {offset + length}, but it has {self.size_bytes}",
            )
        self.file.seek(offset)
        data = self.file.read(length)
        if len(data) != length:
            raise SlideError("truncated", f"{length} bytes at {offset} were asked for, {len(data)} came")
        return data

    def read_value(self, entry: IfdEntry) -> bytes:
        """The bytes of a value. Raises `SlideError` where it is larger than any header needs."""
        if entry.num_bytes > _MAX_VALUE_BYTES:
            raise SlideError("corrupt-header", f"a TIFF tag announces {entry.num_bytes} bytes")
        return entry.inline or self.read(entry.offset, entry.num_bytes)

    def directories(self) -> Iterator[Directory]:
        """The main chain, in file order."""
        seen: set[int] = set()
        offset = self.first
        while offset:
            if offset in seen or len(seen) >= _MAX_DIRECTORIES:
                raise SlideError("corrupt-header", f"its TIFF directories loop at byte {offset}")
            seen.add(offset)
            directory, offset = self._directory(offset)
            yield directory

    def sub_directories(self, parent: Directory) -> list[Directory]:
        """The directories named by SubIFDs."""
        offsets = parent.integers(SUB_IFDS)
        if len(offsets) > _MAX_DIRECTORIES:
            raise SlideError("corrupt-header", f"a directory names {len(offsets)} SubIFDs")
        return [self._directory(int(offset))[0] for offset in offsets]

    def _directory(self, offset: int) -> tuple[Directory, int]:
        """The directory at `offset` and the offset of the next one (0: none)."""
        count_bytes, entry_bytes, next_bytes = (8, 20, 8) if self.big else (2, 12, 4)
        if self.look_ahead is not None:
            self.look_ahead(offset)
        count = int.from_bytes(self.read(offset, count_bytes), self.byteorder)
        if not 0 < count <= _MAX_ENTRIES:
            raise SlideError("corrupt-header", f"the TIFF directory at byte {offset} announces {count} tags")
        start = offset + count_bytes
        data = self.read(start, count * entry_bytes + next_bytes)
        following = int.from_bytes(data[-next_bytes:], self.byteorder)
        return Directory(self, self._entries(data[:-next_bytes], start), offset), following

    def _entries(self, data: bytes, start: int) -> dict[int, IfdEntry]:
        form, value_at, value_bytes = ("HHQ8s", 12, 8) if self.big else ("HHI4s", 8, 4)
        entries: dict[int, IfdEntry] = {}
        for i, (tag, kind, num, value) in enumerate(struct.iter_unpack(self.order + form, data)):
            if kind not in _TYPES:
                continue
            at = start + i * (value_at + value_bytes) + value_at
            num_bytes = num * _TYPES[kind][1]
            if num_bytes <= value_bytes:
                entries[tag] = IfdEntry(kind, num, at, value[:num_bytes])
            else:
                entries[tag] = IfdEntry(kind, num, int.from_bytes(value, self.byteorder))
        return entries


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins so is a TIFF or BigTIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
