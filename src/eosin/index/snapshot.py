"""An immutable snapshot of an index, as everything after the index reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eosin.errors import PermanentError, UserError
from eosin.index.latest import load_manifest, read_latest
from eosin.index.rows import OK, SlideRow, SlideRows
from eosin.index.snapshot_rows import load_snapshot_rows
from eosin.layout import IndexLayout
from eosin.records import SnapshotManifest
from eosin.slides.model import TILE_DTYPE, TileTable
from eosin.storage import ByteRange, NotFound, Store, open_store


@dataclass(frozen=True)
class Snapshot:
    """Rows of every slide, sorted by slide; tile tables are read level by level on request."""

    manifest: SnapshotManifest
    rows: SlideRows
    usable: Sequence[int]
    """Indices of the rows with status `ok`."""
    store: Store

    @property
    def slides_uri(self) -> str:
        """The folder that the keys of the rows are relative to."""
        return self.manifest.slides_uri

    def load_tiles(self, row: SlideRow, level: int) -> TileTable:
        """Tiles of one level, row-major, [num_tiles] of `TILE_DTYPE`, read by its byte range alone.

        Empty for a slide with `access="local"`. Raises ValueError for a level the slide does not have,
        `PermanentError` where the published table is damaged.
        """
        if not 0 <= level < len(row.header.levels):
            raise ValueError(f"level {level} of {row.slide}, which has {len(row.header.levels)}")
        if row.header.access == "local":
            return np.zeros(0, TILE_DTYPE)
        found = row.header.levels[level]
        width = TILE_DTYPE.itemsize
        return self._table(row, width * found.first_tile, width * found.num_tiles)

    def _table(self, row: SlideRow, start: int, length: int) -> TileTable:
        key = IndexLayout.tiles(row.digest)
        try:
            (data,) = self.store.get_ranges([ByteRange(key, start, length)])
        except NotFound:
            data = b""
        if len(data) != length:
            raise PermanentError(
                f"the tile table of {row.slide} ({self.store.uri}/{key}) is missing or too short",
                hint="run `eosin index` again with a new index URI",
            )
        return np.frombuffer(data, TILE_DTYPE)


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
    rows = load_snapshot_rows(store, manifest)
    usable = tuple(i for i, status in enumerate(rows.column("status")) if status == OK)
    return Snapshot(manifest, rows, usable, store)
