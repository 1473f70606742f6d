"""The index row of a slide, and its Parquet form."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eosin.errors import PermanentError
from eosin.index.tissue_mask import TissueMask
from eosin.records.parquet import read_table
from eosin.slides.model import Level, SlideHeader, SlideObject
from eosin.storage import NotFound, Store

OK = "ok"
FLEETING = frozenset({"changed", "denied", "missing", "unreadable"})
"""What a slide is today without its bytes saying so: such a row is made again by the next scan."""
ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class SlideRow:
    """Everything the index knows of one slide. A slide that cannot be used is a row too."""

    slide: str
    """Key of its main object, relative to the slides URI."""
    status: str
    """`ok`, or the reason why it is not used."""
    detail: str
    """One sentence a person can act on; a remark where the status is `ok`."""
    header: SlideHeader
    """With the override's mpp, where there is one; without levels, where it could not be read."""
    mpp_source: str = ""
    """`header`, `override`, or empty where none is known."""
    tissue: TissueMask | None = None
    tissue_mm2: float = 0.0
    patient: str = ""
    cohort: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    """Columns of the overrides that eosin gives no meaning to."""
    digest: str = ""
    """Of slides URI, etags and indexer version: names the tile table and the thumbnail."""
    reuse_digest: str = ""
    """Of all that reading the slide depended on: equal means the row need not be made again."""
    read_status: str = ""
    """The status before the overrides' exclusion."""
    read_detail: str = ""
    has_thumbnail: bool = False
    content: str = ""
    """Of what is on the slide, whatever its name, its metadata and its store: equal on copies."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all its objects."""
        return sum(each.size_bytes for each in self.header.objects)


_OBJECT = pa.struct([("key", pa.string()), ("etag", pa.string()), ("size_bytes", pa.int64())])
_LEVEL = pa.struct(
    [
        ("width_px", pa.int64()), ("height_px", pa.int64()), ("downsample", pa.float64()),
        ("tile_width_px", pa.int32()), ("tile_height_px", pa.int32()), ("compression", pa.string()),
        ("color_space", pa.string()), ("first_tile", pa.int64()), ("jpeg_tables", pa.binary()),
        ("predictor", pa.int32()),
    ]
)  # fmt: skip
_TISSUE = pa.struct(
    [
        ("packed", pa.binary()), ("width", pa.int32()), ("height", pa.int32()),
        ("pixel_x_px", pa.float64()), ("pixel_y_px", pa.float64()),
    ]
)  # fmt: skip
SCHEMA = pa.schema(
    [
        ("slide", pa.string()), ("status", pa.string()), ("detail", pa.string()),
        ("vendor", pa.string()), ("format", pa.string()), ("access", pa.string()),
        ("mpp_x", pa.float64()), ("mpp_y", pa.float64()), ("mpp_source", pa.string()),
        ("objects", pa.list_(_OBJECT)), ("levels", pa.list_(_LEVEL)),
        ("tissue", _TISSUE), ("tissue_mm2", pa.float64()),
        ("patient", pa.string()), ("cohort", pa.string()), ("labels", pa.string()), ("extra", pa.string()),
        ("digest", pa.string()), ("reuse_digest", pa.string()),
        ("read_status", pa.string()), ("read_detail", pa.string()), ("has_thumbnail", pa.bool_()),
        ("content", pa.string()),
    ]
)  # fmt: skip


def encode_rows(rows: Iterable[SlideRow]) -> bytes:
    """Parquet of `rows` sorted by slide: the same rows, the same bytes."""
    buffer = io.BytesIO()
    write_rows(sorted(rows, key=lambda row: row.slide), buffer)
    return buffer.getvalue()


def write_rows(rows: Iterable[SlideRow], file: BinaryIO) -> None:
    """Parquet of `rows` in the order given, 512 in memory at a time."""
    left = iter(rows)
    with pq.ParquetWriter(file, SCHEMA, compression="zstd", write_statistics=False) as writer:
        while group := list(itertools.islice(left, ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist([_to_record(row) for row in group], schema=SCHEMA))


def load_rows(store: Store, key: str) -> SlideRows | None:
    """Published rows, or None where they are not there."""
    try:
        return decode_rows(store.get(key), source=f"{store.uri}/{key}")
    except NotFound:
        return None


class SlideRows(Sequence[SlideRow]):
    """Rows of a Parquet table, made on first use; what is never asked for stays compact."""

    def __init__(self, table: pa.Table, masks: Sequence[TissueMask | None] | None = None) -> None:
        """`masks`: of all rows, where the table does not hold them."""
        self._table, self._masks = table, masks
        self._made: dict[int, list[SlideRow]] = {}
        self._jpeg_tables: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> SlideRow: ...

    @overload
    def __getitem__(self, index: slice) -> list[SlideRow]: ...

    def __getitem__(self, index: int | slice) -> SlideRow | list[SlideRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(index)
        return self._block(at // ROWS_AT_ONCE)[at % ROWS_AT_ONCE]

    def __iter__(self) -> Iterator[SlideRow]:
        return (self[i] for i in range(len(self)))

    def alone(self, index: int) -> SlideRow:
        """One row, not kept: for one pass over rows that together would fill memory."""
        return self._make(index, 1)[0]

    def column(self, name: str) -> list[Any]:
        """One column of all rows, without making the rows."""
        values: list[Any] = self._table.column(name).to_pylist()
        return values

    def _block(self, block: int) -> list[SlideRow]:
        if block not in self._made:
            self._made[block] = self._make(block * ROWS_AT_ONCE, ROWS_AT_ONCE)
        return self._made[block]

    def _make(self, start: int, num: int) -> list[SlideRow]:
        part = self._table.slice(start, num)
        if self._masks is None:
            masks: Sequence[TissueMask | None] = masks_of(part.column("tissue"))
            part = part.drop_columns(["tissue"])
        else:
            masks = self._masks[start : start + num]
        records = part.to_pylist()
        for level in (level for record in records for level in record["levels"]):
            # Slides of one scanner share them, and they are most of a row.
            tables = level["jpeg_tables"]
            level["jpeg_tables"] = tables and self._jpeg_tables.setdefault(tables, tables)
        return [_from_record(*each) for each in zip(records, masks, strict=True)]


def decode_rows(data: bytes, *, source: str) -> SlideRows:
    """The rows in Parquet bytes. Raises `PermanentError` naming `source` where they are not rows."""
    try:
        return SlideRows(conformed(read_table(data)))
    except (pa.ArrowException, OSError) as error:
        raise PermanentError(f"{source} does not hold index rows: {error}", hint="index again") from error


def conformed(part: pa.Table) -> pa.Table:
    """The columns of `SCHEMA`, in order.

    Raises `pyarrow.ArrowInvalid` where one lacks or is not of its kind.
    """
    for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True):
        found = part.schema.field(name).type if name in part.schema.names else None
        if found != kind:
            raise pa.ArrowInvalid(f"column {name} holds {found}, not {kind}")
    return part.select(SCHEMA.names)


def _to_record(row: SlideRow) -> dict[str, Any]:
    header, tissue = row.header, row.tissue
    plain = {name: getattr(row, name) for name in SCHEMA.names if hasattr(row, name)}
    return {
        **plain,
        **{name: getattr(header, name) for name in ("vendor", "format", "access", "mpp_x", "mpp_y")},
        "objects": [vars(each) for each in header.objects],
        "levels": [vars(each) for each in header.levels],
        "tissue": tissue and {**vars(tissue), "packed": bytes(tissue.packed)},
        "labels": _json(row.labels),
        "extra": _json(row.extra),
    }


def masks_of(column: pa.ChunkedArray) -> list[TissueMask | None]:
    """The masks of a column; their bits are views of the column's memory, not copies of it."""
    masks: list[TissueMask | None] = []
    for chunk in column.chunks:
        packed, *others = (chunk.field(each.name) for each in _TISSUE)
        bits = _views(packed)
        fields = [each.to_pylist() for each in others]
        for i, valid in enumerate(chunk.is_valid().to_pylist()):
            masks.append(TissueMask(bits[i], *(each[i] for each in fields)) if valid else None)
    return masks


def _views(values: pa.BinaryArray) -> list[memoryview]:
    """The bytes of each value where Arrow keeps them (its own scalars copy)."""
    _, offsets, data = values.buffers()
    if data is None:
        return [memoryview(b"")] * len(values)
    ends = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1].tolist()
    whole = memoryview(data)
    return [whole[start:end] for start, end in itertools.pairwise(ends)]


def _from_record(record: dict[str, Any], tissue: TissueMask | None) -> SlideRow:
    values = dict(record)
    header = SlideHeader(
        objects=tuple(SlideObject(**each) for each in values.pop("objects")),
        levels=tuple(Level(**each) for each in values.pop("levels")),
        **{name: values.pop(name) for name in ("vendor", "format", "access", "mpp_x", "mpp_y")},
    )
    return SlideRow(
        header=header,
        tissue=tissue,
        labels=json.loads(values.pop("labels")),
        extra=json.loads(values.pop("extra")),
        **values,
    )


def _json(values: dict[str, str]) -> str:
    return json.dumps(values, sort_keys=True, ensure_ascii=False)
