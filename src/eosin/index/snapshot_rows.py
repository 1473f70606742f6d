"""Rows of a published snapshot, however many: their masks on the local disk, the rest in memory."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from eosin.errors import PermanentError
from eosin.index.mask_file import MaskFile
from eosin.index.rows import ROWS_AT_ONCE, SCHEMA, SlideRows, conformed, masks_of
from eosin.index.tissue_mask import TissueMask
from eosin.layout import IndexLayout
from eosin.records import SnapshotManifest
from eosin.storage import Store


def load_snapshot_rows(store: Store, manifest: SnapshotManifest) -> SlideRows:
    """The rows that `manifest` names. Raises `NotFound`, `PermanentError` where they are damaged."""
    key = IndexLayout.snapshot_rows(manifest.snapshot_id)
    with tempfile.TemporaryDirectory(prefix="eosin-snapshot-") as folder:
        path = Path(folder, "rows.parquet")
        store.download(key, path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != manifest.rows_sha256:
            raise PermanentError(f"{store.uri}/{key} is not what its marker says", hint="index again")
        return read_rows(path, source=f"{store.uri}/{key}")


def read_rows(path: Path, *, source: str) -> SlideRows:
    """As `decode_rows`, of a local file: 512 masks in memory at a time.

    Raises `PermanentError` naming `source` where it does not hold rows.
    """
    masks: list[TissueMask | None] = []
    parts = [SCHEMA.empty_table().drop_columns(["tissue"])]
    kept = MaskFile()
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, use_threads=False):
                part = conformed(pa.Table.from_batches([batch]))
                masks += [mask and kept.keep(mask) for mask in masks_of(part.column("tissue"))]
                parts.append(part.drop_columns(["tissue"]))
                del batch, part
                pa.default_memory_pool().release_unused()  # else the room of all masks is kept
    except (pa.ArrowException, OSError) as error:
        raise PermanentError(f"{source} does not hold index rows: {error}", hint="index again") from error
    return SlideRows(pa.concat_tables(parts), masks)
