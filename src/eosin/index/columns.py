"""Rows of a snapshot as columns on a node's disk: made once, mapped into the memory of all its workers.

A start costs what it maps, not what the archive holds; a row is made when it is asked for, and the bits of
its mask are read when they are drawn from.
"""

import contextlib
import fcntl
import itertools
import json
import mmap
import os
import shutil
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eosin.errors import PermanentError, UserError
from eosin.index.rows import SlideRow, conformed
from eosin.index.tissue_mask import TissueMask
from eosin.slides.model import Level, SlideHeader, SlideObject
from eosin.storage import ByteRange, NotFound, Store

FORM = 3
"""Rises when the files below change; older ones are made again."""
_KEPT_ENTRIES, _KEPT_S = 8, 3600.0
_KEPT_MASKS_BYTES = 2 * 2**30
_ROWS_HELD = 2048
_NONE = 0xFFFFFFFF
_TEXT = np.dtype([("start", "<u8"), ("size", "<u4")])
_NAMES = ("slide", "uri", "digest", "reuse_digest", "content", "patient", "detail", "read_detail", "extra",
          "contours")  # fmt: skip
_KINDS = ("status", "vendor", "format", "access", "mpp_source", "cohort", "labels", "read_status", "source",
          "credentials")  # fmt: skip
_NUMBERS = (("mpp_x", "<f8"), ("mpp_y", "<f8"), ("tissue_mm2", "<f8"), ("has_thumbnail", "?"),
            ("origin_x_px", "<i8"), ("origin_y_px", "<i8"))  # fmt: skip
_SLIDE = np.dtype([
    *((name, _TEXT) for name in (*_NAMES, *_KINDS)), *_NUMBERS, ("ok", "?"),
    ("first_level", "<u8"), ("num_levels", "<u4"), ("first_object", "<u8"), ("num_objects", "<u4"),
    ("width_px", "<i8"), ("height_px", "<i8"), ("downsample", "<f8"), ("least_downsample", "<f8"),
    ("mask_start", "<i8"), ("mask_bytes", "<i4"), ("mask_width", "<i4"), ("mask_height", "<i4"),
    ("mask_x_px", "<f8"), ("mask_y_px", "<f8"),
])  # fmt: skip
_LEVEL = np.dtype([
    ("width_px", "<i8"), ("height_px", "<i8"), ("downsample", "<f8"), ("tile_width_px", "<i4"),
    ("tile_height_px", "<i4"), ("compression", _TEXT), ("color_space", _TEXT), ("first_tile", "<i8"),
    ("jpeg_tables", _TEXT), ("predictor", "<i4"),
])  # fmt: skip
_OBJECT = np.dtype([("key", _TEXT), ("etag", _TEXT), ("size_bytes", "<i8")])
_REPEATED = ["levels.list.element.jpeg_tables"]
_FILES = {"slides": _SLIDE, "levels": _LEVEL, "objects": _OBJECT}
Structured = npt.NDArray[np.void]


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of this node's cache, filled by `make` where it is not there.

    Of all processes of the node one makes it, and it appears whole. The cache lies in EOSIN_CACHE_DIR, else
    in the temporary folder; entries unused for an hour give way to new ones. Raises `UserError` where it
    cannot be written.
    """
    root = Path(
        os.environ.get("EOSIN_CACHE_DIR") or Path(tempfile.gettempdir(), f"eosin-cache-{os.getuid()}")
    )
    folder = root / name
    try:
        if not folder.is_dir():
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if root.stat().st_uid != os.getuid():
                raise UserError(
                    f"{root} is another user's", hint="name a folder of your own: EOSIN_CACHE_DIR"
                )
            with (root / ".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not folder.is_dir():
                    _make(root, folder, make)
        os.utime(folder)
    except OSError as error:
        raise UserError(
            f"the index cannot be kept in {root}: {error.strerror or error}",
            hint="name a folder on a local disk with room: EOSIN_CACHE_DIR",
        ) from error
    return folder


def _make(root: Path, folder: Path, make: Callable[[Path], None]) -> None:
    entries = [each for each in root.iterdir() if each.is_dir()]
    for each in entries:
        if each.name.startswith(".making-"):  # by one that was killed: this process holds the lock
            shutil.rmtree(each, ignore_errors=True)
    kept = sorted((each for each in entries if each.name[0] != "."), key=lambda each: -each.stat().st_mtime)
    for each in kept[_KEPT_ENTRIES - 1 :]:  # whoever has mapped it goes on with what it has
        if each.stat().st_mtime < time.time() - _KEPT_S:
            shutil.rmtree(each, ignore_errors=True)
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=root))
    try:
        make(making)
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def write_columns(parquet: Path, folder: Path, *, source: str) -> None:
    """The files of `MappedRows` from published rows, a row group in memory at a time.

    Raises `PermanentError` naming `source` where it does not hold rows.
    """
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(pq.ParquetFile(parquet, pre_buffer=False, read_dictionary=_REPEATED))
            names = (*_FILES, "text", "masks")
            out = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in names}
            for number in range(file.num_row_groups):
                _write(conformed(file.read_row_group(number, use_threads=False)).combine_chunks(), out)
                pa.default_memory_pool().release_unused()
    except (pa.ArrowException, KeyError) as error:
        raise PermanentError(f"{source} does not hold index rows: {error}", hint="index again") from error


def _write(table: pa.Table, out: Mapping[str, BinaryIO]) -> None:
    if not table.num_rows:
        return
    column = {name: table.column(name).chunk(0) for name in table.schema.names}
    slides = np.zeros(table.num_rows, _SLIDE)
    for name in (*_NAMES, *_KINDS):
        slides[name] = _put_text(column[name], out["text"], repeats=name in _KINDS)
    for name, _ in _NUMBERS:
        slides[name] = column[name].to_numpy(zero_copy_only=False)
    slides["ok"] = np.array(pc.equal(column["status"], "ok"))
    levels = _put_structs("levels", column["levels"], slides, out)
    _put_structs("objects", column["objects"], slides, out)
    some = slides["num_levels"] > 0
    if some.any():
        at = (slides["first_level"] - slides["first_level"][0])[some].astype(np.int64)
        for name in ("width_px", "height_px", "downsample"):
            slides[name][some] = levels[name][at]
        slides["least_downsample"][some] = np.minimum.reduceat(levels["downsample"], at)
    _put_masks(column["tissue"], column["mask_start"], column["mask_bytes"], slides, out["masks"])
    out["slides"].write(slides.tobytes())


def _put_structs(
    name: str, lists: pa.ListArray, slides: Structured, out: Mapping[str, BinaryIO]
) -> Structured:
    """Write the structs of a list column, and where those of each slide lie; returns what was written."""
    kind, single = _FILES[name], name[:-1]
    ends = np.asarray(lists.offsets).astype(np.int64)
    values = lists.flatten()
    found = np.zeros(len(values), kind)
    for part in kind.names or ():
        child = values.field(values.type.get_field_index(part))
        repeats = part not in ("key", "etag")
        found[part] = _put_text(child, out["text"], repeats) if kind[part] == _TEXT else child.to_numpy(
            zero_copy_only=False)  # fmt: skip
    slides[f"first_{single}"] = out[name].tell() // kind.itemsize + ends[:-1] - ends[0]
    slides[f"num_{single}s"] = np.diff(ends)
    out[name].write(found.tobytes())
    return found


def _put_text(values: pa.Array, file: BinaryIO, repeats: bool) -> Structured:
    """Where the text (or the bytes) of each value lies; what repeats is written once."""
    if repeats or pa.types.is_dictionary(values.type):
        encoded = values
        if not pa.types.is_dictionary(values.type) or values.null_count:
            encoded = pc.cast(values, pa.binary()).dictionary_encode(null_encoding="encode")
        written = _put_text(encoded.dictionary, file, False)
        return np.asarray(written[np.asarray(encoded.indices)])
    _, offsets, data = values.buffers()
    found = np.zeros(len(values), _TEXT)
    if not len(values):
        return found
    ends = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    found["start"] = file.tell() + ends[:-1] - ends[0]
    found["size"] = np.diff(ends)
    if values.null_count:
        found["size"][~np.asarray(values.is_valid())] = _NONE
    if data is not None:
        file.write(memoryview(data)[ends[0] : ends[-1]])
    return found


def _put_masks(
    tissue: pa.StructArray, starts: pa.Array, sizes: pa.Array, slides: Structured, file: BinaryIO
) -> None:
    valid = np.asarray(tissue.is_valid())
    for name, field in (("mask_width", "width"), ("mask_height", "height"), ("mask_x_px", "pixel_x_px"),
                        ("mask_y_px", "pixel_y_px")):  # fmt: skip
        slides[name] = np.nan_to_num(np.asarray(tissue.field(field).fill_null(0)))
    place = np.asarray(starts)
    apart = place >= 0
    slides["mask_start"], slides["mask_bytes"] = place, np.asarray(sizes)
    if not apart.all():
        inline = _put_text(tissue.field("packed"), file, False)
        slides["mask_start"][~apart] = np.where(valid, inline["start"], -1)[~apart]
        slides["mask_bytes"][~apart] = np.where(valid, inline["size"], 0)[~apart]


class MappedRows(Sequence[SlideRow]):
    """Rows whose columns lie in a folder that `write_columns` filled. Thread-safe; goes on after a fork."""

    def __init__(self, folder: Path, masks: "MasksApart | None" = None) -> None:
        """`masks`: where they lie apart; None: they are in the folder."""
        self.table = _mapped(folder / "slides.bin", _SLIDE)
        self._levels = _mapped(folder / "levels.bin", _LEVEL)
        self._objects = _mapped(folder / "objects.bin", _OBJECT)
        self._texts = _bytes_of(folder / "text.bin")
        self._masks = masks or MasksInFile(folder / "masks.bin")
        self._known: dict[tuple[int, int], str] = {}
        self._tables: dict[tuple[int, int], bytes] = {}
        self._row = lru_cache(_ROWS_HELD)(self.alone)

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> SlideRow: ...

    @overload
    def __getitem__(self, index: slice) -> list[SlideRow]: ...

    def __getitem__(self, index: int | slice) -> SlideRow | list[SlideRow]:
        if isinstance(index, slice):
            return [self.alone(i) for i in range(*index.indices(len(self)))]
        at = int(index) + len(self) if index < 0 else int(index)
        if not 0 <= at < len(self):
            raise IndexError(index)
        return self._row(at)

    def __iter__(self) -> Iterator[SlideRow]:
        return map(self.alone, range(len(self)))

    def find(self, slide: str) -> int | None:
        """The row of `slide`; None where there is none. Rows are sorted by slide."""
        place = bisect_left(range(len(self)), slide, key=lambda row: self._name(*self.table["slide"][row]))
        return place if place < len(self) and self._name(*self.table["slide"][place]) == slide else None

    def column(self, name: str) -> list[Any]:
        """One column of all rows, without making the rows."""
        return self.texts(name) if name in (*_NAMES, *_KINDS) else self.table[name].tolist()

    def texts(self, name: str, rows: npt.NDArray[np.int64] | None = None) -> list[str]:
        """A column of text, of all rows or of some."""
        if name in _NAMES:
            found: list[str] = self.arrow(name, rows).to_pylist()
            return found
        places = self.table[name] if rows is None else self.table[name][rows]
        return [self._kind(place) for place in places.tolist()]

    def arrow(self, name: str, rows: npt.NDArray[np.int64] | None = None) -> pa.ChunkedArray:
        """A column of text that seldom repeats, where it lies; copied where only some rows are wanted."""
        starts = np.ascontiguousarray(self.table[name]["start"]).astype(np.int64)
        ends = starts + self.table[name]["size"]
        cuts = np.flatnonzero(starts[1:] != ends[:-1]) + 1  # parts were written one after the other
        data, chunks = pa.py_buffer(self._texts), []
        for first, last in itertools.pairwise([0, *cuts.tolist(), len(starts)]):
            offsets = np.append(starts[first:last], ends[last - 1 : last])
            chunks.append(pa.LargeStringArray.from_buffers(last - first, pa.py_buffer(offsets), data))
        whole = pa.chunked_array(chunks, pa.large_string())
        return whole if rows is None else whole.take(pa.array(rows))

    @property
    def size_bytes(self) -> int:
        """Bytes of all objects."""
        return int(self._objects["size_bytes"].sum())

    def compressions(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Of the finest level of `rows` that have levels; `staged` where OpenSlide reads a copy."""
        access, first = self.texts("access", rows), self.table["first_level"][rows]
        found = map(self._kind, self._levels["compression"][first].tolist())
        return ["staged" if how == "local" else each for how, each in zip(access, found, strict=True)]

    def objects(self) -> Iterator[tuple[str, int]]:
        """Key of every object, with the number of its row."""
        text = self._texts
        owners = np.repeat(np.arange(len(self)), self.table["num_objects"])
        for (start, size), owner in zip(self._objects["key"].tolist(), owners.tolist(), strict=True):
            yield str(text[start : start + size], "utf-8"), owner

    def prefetch(self, rows: npt.NDArray[np.int64]) -> None:
        """Bring the masks of `rows` nearer, together, where they lie apart."""
        places = [self._place(number, self.table[number]) for number in dict.fromkeys(rows.tolist())]
        self._masks.prefetch([place for place in places if place.start >= 0])

    def _place(self, number: int, slide: Any) -> "StoredBits":
        return StoredBits(self._masks, number, int(slide["mask_start"]), int(slide["mask_bytes"]))

    def alone(self, index: int) -> SlideRow:
        """One row, not kept: for one pass over rows that together would fill memory."""
        values = dict(zip(_SLIDE.names or (), self.table[index].tolist(), strict=True))
        texts = {name: self._name(*values[name]) for name in _NAMES}
        kinds = {name: self._kind(values[name]) for name in _KINDS}
        first, num = values["first_object"], values["num_objects"]
        objects = tuple(
            SlideObject(self._name(*key), self._name(*etag), size)
            for key, etag, size in self._objects[first : first + num].tolist()
        )
        first, num = values["first_level"], values["num_levels"]
        levels = tuple(self._level(each) for each in self._levels[first : first + num].tolist())
        mpp = [None if np.isnan(values[name]) else values[name] for name in ("mpp_x", "mpp_y")]
        header = SlideHeader(objects, kinds.pop("vendor"), kinds.pop("format"), levels, mpp[0], mpp[1],
                             cast(Any, kinds.pop("access")), values["origin_x_px"],
                             values["origin_y_px"])  # fmt: skip
        labels, extra = (json.loads(each) for each in (kinds.pop("labels"), texts.pop("extra")))
        return SlideRow(
            header=header, tissue=self._mask(index, values), tissue_mm2=values["tissue_mm2"],
            has_thumbnail=values["has_thumbnail"], labels=labels, extra=extra, **texts, **kinds,
        )  # fmt: skip

    def _mask(self, number: int, values: dict[str, Any]) -> TissueMask | None:
        if values["mask_start"] < 0:
            return None
        sides = (values[f"mask_{name}"] for name in ("width", "height", "x_px", "y_px"))
        return TissueMask(self._place(number, values), *sides)

    def _level(self, values: tuple[Any, ...]) -> Level:
        *sides, compression, colors, first_tile, tables, predictor = values
        rest: Any = (self._kind(compression), self._kind(colors), first_tile, self._table(tables), predictor)
        return Level(**dict(zip(_LEVEL.names or (), (*sides, *rest), strict=True)))

    def _name(self, start: int, size: int) -> str:
        return str(self._texts[start : start + size], "utf-8")

    def _kind(self, place: tuple[int, int]) -> str:
        """A text that repeats: one object for all rows."""
        if place not in self._known:
            self._known[place] = self._name(*place)
        return self._known[place]

    def _table(self, place: tuple[int, int]) -> bytes | None:
        """Slides of one scanner share them, and they are most of a row."""
        start, size = place
        if size == _NONE:
            return None
        if place not in self._tables:
            self._tables[place] = bytes(self._texts[start : start + size])
        return self._tables[place]


class StoredBits(NamedTuple):
    """Where the bits of one mask lie: that of row `row`."""

    read: "MasksInFile | MasksApart"
    row: int
    start: int
    num_bytes: int

    def __bytes__(self) -> bytes:
        return self.read.one(self)


class MasksInFile:
    """Masks in the node's cache. The kernel keeps what is read often, and gives that memory back."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)

    def one(self, place: StoredBits) -> bytes:
        """The bytes of one mask."""
        return os.pread(self._file.fileno(), place.num_bytes, place.start)

    def prefetch(self, places: Sequence[StoredBits]) -> list[bytes]:
        """They are as near as can be."""
        return []


class MasksApart:
    """Masks in the index's store, each read when it is first drawn from and kept for all workers of the node.

    They are kept at their place in a file with holes, up to 2 GiB; a byte a row says which are there.
    """

    def __init__(self, store: Store, key: str, folder: Path, num_rows: int) -> None:
        self._store, self._key = store, key
        self._file, flags = (
            os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600) for name in ("masks.kept", "masks.have")
        )
        os.ftruncate(flags, max(1, num_rows))
        self._have = mmap.mmap(flags, max(1, num_rows))
        os.close(flags)

    def one(self, place: StoredBits) -> bytes:
        """The bytes of one mask. Raises `PermanentError` where they are gone."""
        found = self.prefetch([place])
        return found[0] if found else os.pread(self._file, place.num_bytes, place.start)

    def prefetch(self, places: Sequence[StoredBits]) -> list[bytes]:
        """The masks that are not kept yet, in one batch."""
        wanted = [each for each in places if not self._have[each.row]]
        ranges = [ByteRange(self._key, each.start, each.num_bytes) for each in wanted]
        try:
            found = self._store.get_ranges(ranges) if ranges else []
        except NotFound:
            found = [b""] * len(wanted)
        for place, data in zip(wanted, found, strict=True):
            if len(data) != place.num_bytes:
                raise PermanentError(
                    f"{self._store.uri}/{self._key} is missing or too short", hint="index again"
                )
            if os.fstat(self._file).st_blocks * 512 + len(data) < _KEPT_MASKS_BYTES:
                with contextlib.suppress(OSError):
                    if os.pwrite(self._file, data, place.start) == len(data):
                        self._have[place.row] = 1
        return list(found)


def _mapped(path: Path, kind: np.dtype[Any]) -> Structured:
    return np.frombuffer(_bytes_of(path), kind)


def _bytes_of(path: Path) -> memoryview:
    size = path.stat().st_size
    if not size:
        return memoryview(b"")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
