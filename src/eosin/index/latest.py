"""The pointer to the newest snapshot: the one moving object of an index."""

from __future__ import annotations

from eosin.layout import IndexLayout
from eosin.records import SnapshotManifest, load_record, update_record
from eosin.records.base import Record
from eosin.storage import Store


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
