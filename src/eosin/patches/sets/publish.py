"""Publishing of patch sets: shards under markers, then the manifest that makes a set whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from eosin import __version__
from eosin.errors import UserError
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.patches.sets.contact_sheet import contact_sheet
from eosin.patches.sets.patchset import CONTACT_SHEET, ShardMarker, read_shard
from eosin.records import PatchSetManifest, PatchSetShard, load_record, publish_once
from eosin.records.patchset_shard import PatchRow, encode_shard
from eosin.storage import Store, join_uri, open_store

_ON_CONTACT_SHEET = 48
_MARKERS_AT_ONCE = 32
_NAMED_AT_MOST = 20


def shard_suffix(format: str) -> str:
    """What the key of a shard of `format` ends with."""
    return "tar" if format == "webdataset" else "parquet"


def find_published(store: Store, name: str) -> set[str]:
    """Keys of the set's whole shards: both the shard and its marker are there. Costs one listing.

    A shard that was deleted under its marker is not among them: it is decoded again, to the same bytes.
    """
    keys = {info.key for info in store.list(RunLayout.patch_set(name))}
    return {
        key
        for key in keys
        if key.endswith(RunLayout.SHARD_SUFFIXES) and RunLayout.patch_set_marker_of(key) in keys
    }


def publish_shard(store: Store, key: str, rows: Sequence[PatchRow], marker: ShardMarker) -> PatchSetShard:
    """Publish a shard of `rows` at `key`, then its marker with key, count and digest filled in."""
    file = key.rpartition("/")[2]
    data = encode_shard(rows, marker.format, file.partition(".")[0])
    store.put(key, data)
    shard = PatchSetShard(key=file, num_patches=len(rows), sha256=hashlib.sha256(data).hexdigest())
    slides = tuple(sorted({row.slide for row in rows}))
    whole = marker.model_copy(update={"shard": shard, "slides": slides})
    store.put(RunLayout.patch_set_marker_of(key), whole.to_json())
    return shard


def publish_manifest(store: Store, name: str, shard_keys: Sequence[str], log: RunLog) -> PatchSetManifest:
    """Publish the manifest of the shards, a contact sheet before it; a manifest that is there already
    wins, and is returned.

    Raises `UserError` naming shards that are missing, or where the set has no patch.
    """
    folder_uri = join_uri(store.uri, RunLayout.patch_set(name))
    published = load_record(PatchSetManifest, store, RunLayout.patch_set_manifest(name))
    if published is not None:
        return published
    manifest = _manifest(name, _read_markers(store, name, shard_keys))
    sheet = contact_sheet(_sample(open_store(folder_uri), manifest))
    store.put(RunLayout.patch_set(name) + CONTACT_SHEET, sheet)
    published = publish_once(store, RunLayout.patch_set_manifest(name), manifest)
    log.event("patch-set-published", name=name, num_patches=manifest.num_patches, digest=manifest.digest[:16],
              slides=len(manifest.slides), rejected=len(manifest.rejected))  # fmt: skip
    return published


def read_shard_marker(store: Store, shard_key: str) -> ShardMarker | None:
    """The marker of a shard; None where there is none."""
    return load_record(ShardMarker, store, RunLayout.patch_set_marker_of(shard_key))


def _read_markers(store: Store, name: str, shard_keys: Sequence[str]) -> list[ShardMarker]:
    with ThreadPoolExecutor(_MARKERS_AT_ONCE, thread_name_prefix="eosin-markers") as threads:
        found = list(threads.map(lambda key: read_shard_marker(store, key), shard_keys))
    missing = [str(number) for number, marker in enumerate(found) if marker is None]
    if missing:
        shown = ", ".join(missing[:_NAMED_AT_MOST]) + (" …" if len(missing) > _NAMED_AT_MOST else "")
        raise UserError(
            f"patch set {name} of {store.uri} is not whole: of {len(shard_keys)} shards these are missing: "
            + shown,
            hint="decode them first: `eosin decode`",
        )
    return [marker for marker in found if marker is not None]


def _manifest(name: str, markers: Sequence[ShardMarker]) -> PatchSetManifest:
    first = markers[0]
    shards = tuple(marker.shard for marker in markers if marker.shard.num_patches)
    if not shards:
        unreadable = any(marker.rejected for marker in markers)
        few = "lower its min_foreground, mpp or patch_px, or its hsv_filter, under another name"
        raise UserError(
            f"patch set {name} has no patch" + _reasons(markers),
            hint="index the slides again, and decode for a run on that index" if unreadable else few,
        )
    return PatchSetManifest(
        name=name,
        digest=hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest(),
        patch_px=first.patch_px,
        mpp=first.mpp,
        encoding=first.encoding,
        format=first.format,
        num_patches=sum(shard.num_patches for shard in shards),
        shards=shards,
        snapshot_id=first.snapshot_id,
        slides=tuple(sorted({slide for marker in markers for slide in marker.slides})),
        rejected=tuple(patch for marker in markers for patch in marker.rejected),
        notes=_distinct(note for marker in markers for note in marker.notes),
        eosin_version=__version__,
    )


def _reasons(markers: Sequence[ShardMarker]) -> str:
    lines = _distinct(f"{patch.slide}: {patch.reason}" for marker in markers for patch in marker.rejected)
    return "".join(f"\n  {line}" for line in lines[:_NAMED_AT_MOST])


def _distinct(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(lines))


def _sample(store: Store, manifest: PatchSetManifest) -> list[PatchRow]:
    """Patches at even distances through the set."""
    stride = max(1, -(-manifest.num_patches // _ON_CONTACT_SHEET))
    found: list[PatchRow] = []
    first = 0
    for shard in manifest.shards:
        if -first % stride < shard.num_patches:
            found += read_shard(store, shard)[-first % stride :: stride]
        first += shard.num_patches
    return found
