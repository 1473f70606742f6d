"""Spare objects of an index: what it does not need any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from eosin.errors import EosinError, PermanentError
from eosin.index.latest import Latest, read_latest
from eosin.index.rows import decode_rows
from eosin.layout import IndexLayout
from eosin.retention.model import Age, Doomed, by_folder, doom
from eosin.storage import NotFound, ObjectInfo, Store, join_uri


def spare_index_objects(store: Store, pinned: set[str], age: Age, kept: list[str]) -> Iterator[Doomed]:
    """Snapshots and scans that are neither pinned nor the newest, then the tables that only they used.

    `pinned` are the snapshots that runs read. Appends to `kept` why something is left alone.
    """
    latest = _latest(store, kept)
    if latest is None:
        return
    snapshots = by_folder(store.list(IndexLayout.SNAPSHOTS), IndexLayout.SNAPSHOTS)
    scans = by_folder(store.list(IndexLayout.SCANS), IndexLayout.SCANS)
    tables = [*store.list(IndexLayout.TILES), *store.list(IndexLayout.THUMBNAILS)]
    kept_snapshots = _kept(snapshots, pinned | {latest.snapshot_id}, age)
    kept_scans = _kept(scans, {latest.scan_id}, age)
    for name in sorted(snapshots.keys() - kept_snapshots):
        marker = IndexLayout.snapshot_marker(name)
        reason = "a snapshot that no run pins and that is not the newest"
        yield doom(store, IndexLayout.snapshot(name), snapshots[name], reason, first=marker)
    for name in sorted(scans.keys() - kept_scans):
        yield doom(store, IndexLayout.scan(name), scans[name], "a scan that is not the newest snapshot's")
    live = [snapshots[name] for name in kept_snapshots] + [scans[name] for name in kept_scans]
    yield from _orphans(store, tables, [each for found in live for each in found], age, kept)


def _latest(store: Store, kept: list[str]) -> Latest | None:
    try:
        latest = read_latest(store)
    except EosinError:
        latest = None
    if latest is None:
        kept.append(f"all of {store.uri}: {IndexLayout.LATEST} is missing or cannot be read")
    return latest


def _kept(folders: dict[str, list[ObjectInfo]], needed: set[str], age: Age) -> set[str]:
    return {name for name, found in folders.items() if name in needed or age.is_young(found)}


def _orphans(
    store: Store, tables: list[ObjectInfo], live: Iterable[ObjectInfo], age: Age, kept: list[str]
) -> Iterator[Doomed]:
    try:
        digests = _digests(store, live)
    except (EosinError, NotFound) as error:
        kept.append(f"tile tables and thumbnails of {store.uri}: {str(error).partition(chr(10))[0]}")
        return
    needed = {make(digest) for digest in digests for make in (IndexLayout.tiles, IndexLayout.thumbnail)}
    spare = [each for each in tables if each.key not in needed and not age.is_young([each])]
    for prefix, reason in (
        (IndexLayout.TILES, "tile tables that no snapshot names"),
        (IndexLayout.THUMBNAILS, "thumbnails that no snapshot names"),
    ):
        found = [each for each in spare if each.key.startswith(prefix)]
        if found:
            yield doom(store, prefix, found, reason)


def _digests(store: Store, live: Iterable[ObjectInfo]) -> set[str]:
    """Digests of all slides in the rows of `live`. Raises where rows cannot be read."""
    digests: set[str] = set()
    for each in live:
        if not each.key.endswith(".parquet") or IndexLayout.is_listing(each.key):
            continue
        source = join_uri(store.uri, each.key)
        try:
            digests.update(decode_rows(store.get(each.key), source=source).column("digest"))
        except ValueError as error:
            raise PermanentError(f"{source} cannot be read: {error}") from error
    return digests
