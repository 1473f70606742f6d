"""Shard of a patch set, as Parquet or as a tar: the same rows, the same bytes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eosin.errors import PermanentError
from eosin.records.parquet import read_table

_PARQUET_MAGIC = b"PAR1"
_SCHEMA = pa.schema(
    [
        ("image", pa.binary()),
        ("slide", pa.string()),
        ("patient", pa.string()),
        ("x_px", pa.int64()),
        ("y_px", pa.int64()),
        ("mpp", pa.float64()),
        ("foreground", pa.float32()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("sha256", pa.string()),
    ]
)
_REQUIRED = ("image", "slide", "x_px", "y_px", "mpp", "foreground")


@dataclass(frozen=True)
class PatchRow:
    """One decoded patch: `image` is PNG or JPEG bytes; `x_px`, `y_px` its corner in the level-0 frame."""

    image: bytes
    slide: str
    x_px: int
    y_px: int
    mpp: float
    foreground: float
    patient: str = ""
    label: str = ""
    """Empty: not labelled."""
    split: str = ""
    """train, val, test, or empty."""
    sha256: str = ""
    """Of `image`; worked out where it is not given."""

    def __post_init__(self) -> None:
        if not self.sha256:
            object.__setattr__(self, "sha256", hashlib.sha256(self.image).hexdigest())


def encode_shard(rows: Sequence[PatchRow], format: str = "parquet", stem: str = "shard") -> bytes:
    """The bytes of a shard of `rows`, in order.

    `format`: parquet, or webdataset: a tar whose samples are called `stem` and their number.
    """
    if format == "webdataset":
        from eosin.records.patchset_tar import encode_tar

        return encode_tar(rows, stem)
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=_SCHEMA)
    buffer = io.BytesIO()
    # Images are not compressed twice.
    compression = {name: "none" if name == "image" else "zstd" for name in _SCHEMA.names}
    pq.write_table(table, buffer, compression=compression, use_dictionary=False, write_statistics=False)
    return buffer.getvalue()


def decode_shard(data: bytes, *, source: str) -> list[PatchRow]:
    """The rows of a shard, whichever its format. Raises `PermanentError` naming `source` where the bytes
    are not one."""
    if not data.startswith(_PARQUET_MAGIC):
        from eosin.records.patchset_tar import decode_tar

        return decode_tar(data, source=source)
    try:
        table = read_table(data)
        # A shard of an earlier eosin lacks columns of today.
        table = table.select([name for name in _SCHEMA.names if name in table.column_names])
        table = table.cast(pa.schema([_SCHEMA.field(name) for name in table.column_names]))
    except (pa.ArrowException, OSError) as error:
        raise PermanentError(f"{source} is not a patch-set shard: {error}") from error
    missing = [name for name in _REQUIRED if name not in table.column_names]
    if missing:
        raise PermanentError(f"{source} is not a patch-set shard: it has no column {', '.join(missing)}")
    return [PatchRow(**_present(row)) for row in table.to_pylist()]


def _present(row: dict[str, Any]) -> dict[str, Any]:
    """Without what is null."""
    return {name: value for name, value in row.items() if value is not None}
