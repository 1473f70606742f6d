"""The Parquet form of one shard of a patch set: the same rows, the same bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from eosin.errors import PermanentError

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
    ]
)


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


def encode_shard(rows: Sequence[PatchRow]) -> bytes:
    """Parquet bytes of `rows`, in order; images are not compressed twice."""
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=_SCHEMA)
    buffer = io.BytesIO()
    compression = {name: "none" if name == "image" else "zstd" for name in _SCHEMA.names}
    pq.write_table(table, buffer, compression=compression, use_dictionary=False, write_statistics=False)
    return buffer.getvalue()


def decode_shard(data: bytes, *, source: str) -> list[PatchRow]:
    """The rows of a shard. Raises `PermanentError` naming `source` where the bytes are not one."""
    try:
        table = pq.read_table(io.BytesIO(data), schema=_SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise PermanentError(f"{source} is not a patch-set shard: {error}") from error
    return [PatchRow(**row) for row in table.to_pylist()]
