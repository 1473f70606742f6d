"""Immutable snapshots of an index, as everything after the index reads them; the pointer to the newest."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eosin.errors import PermanentError, UserError
from eosin.index.columns import FORM, MappedRows, MasksApart, made_once, write_columns
from eosin.index.rows import SlideRow
from eosin.index.sources import open_slide_store, sources_of
from eosin.layout import IndexLayout
from eosin.records import SnapshotManifest, load_record, update_record
from eosin.records.base import Record
from eosin.storage import ByteRange, Store, open_store

_MOST_THUMBNAIL_BYTES = 1 << 20


class Latest(Record):
    """`LATEST.json` of an index."""

    snapshot_id: str
    """The newest snapshot of the index."""
    scan_id: str
    """The scan it came from: the same slides, overrides and settings scan to the same id."""


def read_latest(store: Store) -> Latest | None:
    """The newest snapshot's name; None where the index is empty."""
    return load_record(Latest, store, IndexLayout.LATEST)


def move_latest(store: Store, latest: Latest) -> None:
    """Point to `latest`, by conditional puts: of two at once the later one stands, and none is torn.

    Raises `TransientError` where others keep moving it.
    """
    update_record(Latest, store, IndexLayout.LATEST, lambda found: None if found == latest else latest)


def load_manifest(store: Store, snapshot_id: str) -> SnapshotManifest | None:
    """The marker of a snapshot; None where it was never completed."""
    return load_record(SnapshotManifest, store, IndexLayout.snapshot_marker(snapshot_id))


@dataclass(frozen=True)
class Snapshot:
    """Rows of every slide, sorted by slide."""

    manifest: SnapshotManifest
    rows: MappedRows
    store: Store

    @cached_property
    def usable(self) -> npt.NDArray[np.int64]:
        """Indices of the rows with status `ok`."""
        return np.flatnonzero(self.rows.table["ok"])

    @property
    def slides_uri(self) -> str:
        """The folder that the keys of the rows are relative to; of several sources, what they are."""
        return self.manifest.slides_uri

    def slide_store(self) -> Store:
        """Where the slides lie, each source open with its own access."""
        return open_slide_store(self.slides_uri, sources_of(self.manifest.sources))

    def load_thumbnail(self, row: SlideRow) -> bytes:
        """JPEG of at most 512 px a side, where the slide has one. Raises `NotFound`."""
        wanted = ByteRange(IndexLayout.tiles(row.digest), row.table_bytes, _MOST_THUMBNAIL_BYTES)
        return self.store.get_ranges([wanted])[0]


def open_snapshot(index_uri: str, snapshot_id: str | None = None) -> Snapshot:
    """The snapshot `snapshot_id` of an index, or its newest one.

    Raises `UserError` where there is none, `PermanentError` where its rows are damaged.
    """
    store = open_store(index_uri)
    if snapshot_id is None:
        latest = read_latest(store)
        if latest is None:
            raise UserError(f"no index at {index_uri}", hint="make one with `eosin index`")
        snapshot_id = latest.snapshot_id
    manifest = load_manifest(store, snapshot_id)
    if manifest is None:
        raise UserError(f"index {index_uri} has no snapshot {snapshot_id}", hint="`eosin index inspect` it")
    return Snapshot(manifest, load_snapshot_rows(store, manifest), store)


def load_snapshot_rows(store: Store, manifest: SnapshotManifest) -> MappedRows:
    """The rows of `manifest`, from this node's cache. Raises `NotFound`, `PermanentError` for damage."""
    key = IndexLayout.snapshot_rows(manifest.snapshot_id)

    def make(folder: Path) -> None:
        path, source = folder / "rows.parquet", f"{store.uri}/{key}"
        store.download(key, path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != manifest.rows_sha256:
            raise PermanentError(f"{source} is not what its marker says", hint="index again")
        write_columns(path, folder, source=source)
        path.unlink()

    folder = made_once(f"rows-{FORM}-{manifest.rows_sha256[:32]}", make)
    rows = MappedRows(folder)
    if (folder / "masks.bin").stat().st_size or not len(rows):
        return rows
    masks = MasksApart(store, IndexLayout.snapshot_masks(manifest.snapshot_id), folder, len(rows))
    return MappedRows(folder, masks)
