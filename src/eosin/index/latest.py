"""The one moving object of an index: which snapshot is the newest."""

from __future__ import annotations

from eosin.errors import TransientError
from eosin.layout import IndexLayout
from eosin.records import SnapshotManifest
from eosin.records.base import Record
from eosin.storage import NotFound, PreconditionFailed, Store

_ATTEMPTS = 8


class Latest(Record):
    """`LATEST.json` of an index."""

    snapshot_id: str
    scan_id: str
    """The scan it came from: the same slides, overrides and settings scan to the same id."""


def read_latest(store: Store) -> Latest | None:
    """The newest snapshot's name; None where the index is empty."""
    try:
        return Latest.from_json(store.get(IndexLayout.LATEST), source=f"{store.uri}/{IndexLayout.LATEST}")
    except NotFound:
        return None


def move_latest(store: Store, latest: Latest) -> None:
    """Point to `latest`, by conditional puts: of two at once the later one stands, and none is torn.

    Raises `TransientError` where others keep moving it.
    """
    for _ in range(_ATTEMPTS):
        try:
            etag = store.head(IndexLayout.LATEST).etag
        except NotFound:
            etag = None
        if etag is not None and read_latest(store) == latest:
            return
        try:
            store.put(IndexLayout.LATEST, latest.to_json(), if_none_match=etag is None, if_match=etag)
            return
        except PreconditionFailed:
            continue
    raise TransientError(f"{store.uri}/{IndexLayout.LATEST} is being moved by others", hint="run it again")


def load_manifest(store: Store, snapshot_id: str) -> SnapshotManifest | None:
    """The marker of a snapshot; None where it was never completed."""
    key = IndexLayout.snapshot_marker(snapshot_id)
    try:
        return SnapshotManifest.from_json(store.get(key), source=f"{store.uri}/{key}")
    except NotFound:
        return None
