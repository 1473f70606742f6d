"""The index row of a slide, and its Parquet form."""

import io
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, BinaryIO, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eosin.errors import PermanentError
from eosin.index.tissue_mask import TissueMask
from eosin.records.parquet import read_table
from eosin.slides.model import TILE_DTYPE, Level, SlideHeader, SlideObject
from eosin.storage import NotFound, Store

OK = "ok"
FLEETING = frozenset({"changed", "denied", "missing", "unreadable"})
"""What a slide is today without its bytes saying so: such a row is made again by the next scan."""
ROWS_WITH_MASKS = 512
_TABLES_A_GROUP = 8


@dataclass(frozen=True)
class SlideRow:
    """Everything the index knows of one slide. A slide that cannot be used is a row too."""

    slide: str
    """Key of its main object, relative to the slides URI; of several sources, after its source's name."""
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
    """Of slides URI, etags and indexer version: names the object of tile table and thumbnail."""
    reuse_digest: str = ""
    """Of all that reading the slide depended on: equal means the row need not be made again."""
    read_status: str = ""
    """The status before the overrides' exclusion."""
    read_detail: str = ""
    has_thumbnail: bool = False
    content: str = ""
    """Of what is on the slide, whatever its name, its metadata and its store: equal on copies."""
    uri: str = ""
    """The slide's own."""
    source: str = ""
    """Name of its source; empty where the slides are one folder."""
    credentials: str = ""
    """Name of what its source is read with, never a secret: anonymous, a profile's name, environment."""
    contours: str = ""
    """URI of the GeoJSON that its mask was drawn from; empty where the tissue was found on the slide."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all its objects."""
        return sum(each.size_bytes for each in self.header.objects)

    @property
    def table_bytes(self) -> int:
        """Of its tile table, behind which its thumbnail lies; a slide with `access="local"` has none."""
        num_tiles = sum(each.num_tiles for each in self.header.levels)
        return num_tiles * TILE_DTYPE.itemsize if self.header.access == "tiles" else 0


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
        ("content", pa.string()), ("uri", pa.string()), ("source", pa.string()), ("credentials", pa.string()),
        ("contours", pa.string()), ("origin_x_px", pa.int64()), ("origin_y_px", pa.int64()),
        ("mask_start", pa.int64()), ("mask_bytes", pa.int32()),
    ]
)  # fmt: skip
_HEADER = ("vendor", "format", "access", "mpp_x", "mpp_y", "origin_x_px", "origin_y_px")
# Columns of a snapshot alone: in parts of a scan the masks stand in the rows.
_PLACE_OF_MASK = {"mask_start": -1, "mask_bytes": 0}
_NO_ORIGIN = {"origin_x_px": 0, "origin_y_px": 0}  # of snapshots of an earlier indexer
_PART_SCHEMA = pa.schema(list(SCHEMA)[: -len(_PLACE_OF_MASK)])


def encode_rows(rows: Iterable[SlideRow]) -> bytes:
    """Parquet of `rows` sorted by slide: the same rows, the same bytes."""
    buffer = io.BytesIO()
    write_rows(sorted(rows, key=lambda row: row.slide), buffer)
    return buffer.getvalue()


def write_rows(rows: Iterable[SlideRow], file: BinaryIO, masks: BinaryIO | None = None) -> None:
    """Parquet of `rows` in the order given, as `write_tables` writes it, 512 in memory at a time."""
    left = iter(rows)
    groups = iter(lambda: list(itertools.islice(left, ROWS_WITH_MASKS)), [])
    tables = (pa.Table.from_pylist([_to_record(row) for row in group], _PART_SCHEMA) for group in groups)
    write_tables(tables, file, masks)


def write_tables(tables: Iterable[pa.Table], file: BinaryIO, masks: BinaryIO | None = None) -> None:
    """Parquet of rows that stand in `tables`, each of one chunk and at most 512 rows, in order.

    `masks`: takes the bits of the masks, one after the other; None: they stand in the rows.
    """
    left = iter(tables) if masks is None else (_masks_apart(each, masks) for each in tables)
    schema, num = (_PART_SCHEMA, 1) if masks is None else (SCHEMA, _TABLES_A_GROUP)
    with pq.ParquetWriter(file, schema, compression="zstd", write_statistics=False) as writer:
        while group := list(itertools.islice(left, num)):
            writer.write_table(pa.concat_tables(group))


def _masks_apart(table: pa.Table, masks: BinaryIO) -> pa.Table:
    tissue = table.column("tissue").combine_chunks()
    absent = np.asarray(tissue.is_null())
    packed = [bits or b"" for bits in pc.struct_field(tissue, "packed").to_pylist()]
    sizes = np.array([len(each) for each in packed], np.int32)
    starts = np.where(absent, -1, masks.tell() + np.cumsum(sizes, dtype=np.int64) - sizes)
    masks.write(b"".join(packed))
    rest = [tissue.field(each.name) for each in list(_TISSUE)[1:]]
    bare = pa.repeat(pa.scalar(b""), len(table))
    tissue = pa.StructArray.from_arrays([bare, *rest], fields=list(_TISSUE), mask=pa.array(absent))
    places = {"tissue": tissue, "mask_start": pa.array(starts), "mask_bytes": pa.array(sizes)}
    return pa.table(
        [places[name] if name in places else table.column(name) for name in SCHEMA.names], schema=SCHEMA
    )


def load_rows(store: Store, key: str) -> "SlideRows | None":
    """Published rows, or None where they are not there."""
    try:
        return decode_rows(store.get(key), source=f"{store.uri}/{key}")
    except NotFound:
        return None


class SlideRows(Sequence[SlideRow]):
    """Rows of a Parquet table in memory, made on first use."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> SlideRow: ...

    @overload
    def __getitem__(self, index: slice) -> list[SlideRow]: ...

    def __getitem__(self, index: int | slice) -> SlideRow | list[SlideRow]:
        return self._rows[index]

    def column(self, name: str) -> list[Any]:
        """One column of all rows, without making the rows."""
        values: list[Any] = self._table.column(name).to_pylist()
        return values

    @cached_property
    def _rows(self) -> list[SlideRow]:
        return [_from_record(each) for each in self._table.to_pylist()]


def decode_rows(data: bytes, *, source: str) -> SlideRows:
    """The rows in Parquet bytes. Raises `PermanentError` naming `source` where they are not rows."""
    return SlideRows(decode_table(data, source))


def decode_table(data: bytes, source: str, columns: Sequence[str] | None = None) -> pa.Table:
    """All columns of the rows in Parquet bytes, or some as they are. Raises as `decode_rows`."""
    try:
        return conformed(read_table(data)) if columns is None else read_table(data, columns)
    except (pa.ArrowException, OSError) as error:
        raise PermanentError(f"{source} does not hold index rows: {error}", hint="index again") from error


def conformed(part: pa.Table) -> pa.Table:
    """The columns of `SCHEMA`, in order; without a place of the masks where they stand in the rows.

    Raises `pyarrow.ArrowInvalid` where a column lacks or is not of its kind.
    """
    for name, value in (_PLACE_OF_MASK | _NO_ORIGIN).items():
        if name not in part.schema.names:
            kind = SCHEMA.field(name).type
            part = part.append_column(name, pa.repeat(pa.scalar(value, kind), part.num_rows))
    for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True):
        found = _plain(part.schema.field(name).type) if name in part.schema.names else None
        if found != kind:
            raise pa.ArrowInvalid(f"column {name} holds {found}, not {kind}")
    return part.select(SCHEMA.names)


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type whose texts may be read as dictionaries."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([each.with_type(_plain(each.type)) for each in kind])
    return kind


def _to_record(row: SlideRow) -> dict[str, Any]:
    header, tissue = row.header, row.tissue
    plain = {name: getattr(row, name) for name in SCHEMA.names if hasattr(row, name)}
    return {
        **plain,
        **{name: getattr(header, name) for name in _HEADER},
        "objects": [vars(each) for each in header.objects],
        "levels": [vars(each) for each in header.levels],
        "tissue": tissue and {**vars(tissue), "packed": bytes(tissue.packed)},
        "labels": _json(row.labels),
        "extra": _json(row.extra),
    }


def _from_record(values: dict[str, Any]) -> SlideRow:
    del values["mask_start"], values["mask_bytes"]
    tissue = values.pop("tissue")
    header = SlideHeader(
        objects=tuple(SlideObject(**each) for each in values.pop("objects")),
        levels=tuple(Level(**each) for each in values.pop("levels")),
        **{name: values.pop(name) for name in _HEADER},
    )
    return SlideRow(
        header=header,
        tissue=tissue and TissueMask(**tissue),
        labels=json.loads(values.pop("labels")),
        extra=json.loads(values.pop("extra")),
        **values,
    )


def _json(values: dict[str, str]) -> str:
    return json.dumps(values, sort_keys=True, ensure_ascii=False)
