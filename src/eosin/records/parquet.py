"""Parquet tables from bytes, read by the thread that asks."""

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def encode_table(table: pa.Table) -> bytes:
    """The table as Parquet, compressed with zstd."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_table(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """All columns of Parquet `data`, or some. Raises `pyarrow.ArrowException` or OSError where it is none.

    Threads of Arrow's that still let go of a Python object while the process ends abort it ("terminate
    called without an active exception"), so none is used.
    """
    with pq.ParquetFile(io.BytesIO(data), pre_buffer=False) as file:
        return file.read(columns, use_threads=False)
