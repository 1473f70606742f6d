"""Merge the shards of a scan into one immutable snapshot."""

from __future__ import annotations

import hashlib
import json

from eosin import __version__
from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.index.latest import Latest, load_manifest, move_latest, read_latest
from eosin.index.plan import ScanPlan, plan_scan
from eosin.index.read_slide import INDEXER_VERSION
from eosin.index.rows import FLEETING, OK, SlideRow, encode_rows
from eosin.index.scan import ScanResult, count, load_rows
from eosin.layout import IndexLayout
from eosin.observability import RunLog
from eosin.records import SnapshotManifest
from eosin.storage import PreconditionFailed, Store

_NAMED_SLIDES = 5


def publish_snapshot(config: RunConfig, num_shards: int, log: RunLog) -> SnapshotManifest:
    """Publish the snapshot of the scan whose `num_shards` shards are there, and make it the newest.

    The same slides give the same snapshot, byte for byte, whatever the number of shards and their
    order; published again it is a no-op. Raises `UserError` where a shard is missing, and, after
    publishing, where no slide can be used: the message counts the reasons and names slides.
    """
    plan = plan_scan(config)
    for name in plan.unknown_overrides:
        log.event("warning", detail=f"the overrides name {name}, which is no slide (or several)")
    latest = read_latest(plan.index)
    if latest is not None and latest.scan_id == plan.scan_id:
        manifest = load_manifest(plan.index, latest.snapshot_id)
        if manifest is not None and not FLEETING & set(manifest.reasons):
            return _checked(plan, manifest, log)
    manifest = _publish(plan, _merged(plan, num_shards))
    move_latest(plan.index, Latest(snapshot_id=manifest.snapshot_id, scan_id=plan.scan_id))
    return _checked(plan, manifest, log)


def _merged(plan: ScanPlan, num_shards: int) -> list[SlideRow]:
    rows: list[SlideRow] = []
    missing: list[int] = []
    for shard in range(num_shards):
        part = load_rows(plan.index, IndexLayout.shard(plan.scan_id, shard, num_shards))
        if part is None:
            missing.append(shard)
        rows += part or []
    if missing:
        names = ", ".join(f"{shard}/{num_shards}" for shard in missing[:10])
        raise UserError(
            f"{len(missing)} of {num_shards} shards of scan {plan.scan_id} are missing in {plan.index.uri}: "
            f"{names}",
            hint="run `eosin index --shard I/N` for each; where slides came or went meanwhile, for all",
        )
    return sorted(rows, key=lambda row: row.slide)


def _publish(plan: ScanPlan, rows: list[SlideRow]) -> SnapshotManifest:
    snapshot_id = _snapshot_id(plan, rows)
    published = load_manifest(plan.index, snapshot_id)
    if published is not None:
        return published
    data = _put_once(plan.index, IndexLayout.snapshot_rows(snapshot_id), encode_rows(rows))
    result = count(rows)
    manifest = SnapshotManifest(
        snapshot_id=snapshot_id,
        rows_sha256=hashlib.sha256(data).hexdigest(),
        slides_uri=plan.slides.uri,
        indexer_version=INDEXER_VERSION,
        num_slides=result.num_slides,
        num_ok=result.num_ok,
        tissue_mm2=sum(row.tissue_mm2 for row in rows if row.status == OK),
        reasons=result.reasons,
        eosin_version=__version__,
    )
    marker = _put_once(plan.index, IndexLayout.snapshot_marker(snapshot_id), manifest.to_json())
    return SnapshotManifest.from_json(marker, source=IndexLayout.snapshot_marker(snapshot_id))


def _put_once(store: Store, key: str, data: bytes) -> bytes:
    """Publish `data` unless something is there; what is there then."""
    try:
        store.put(key, data, if_none_match=True)
        return data
    except PreconditionFailed:
        return store.get(key)


def _snapshot_id(plan: ScanPlan, rows: list[SlideRow]) -> str:
    """Digest of what the rows say, independent of how Parquet writes them."""
    digest = hashlib.sha256(json.dumps([plan.slides.uri, INDEXER_VERSION]).encode())
    for row in rows:
        digest.update(repr(row_identity(row)).encode())
    return digest.hexdigest()[:16]


def row_identity(row: SlideRow) -> tuple[object, ...]:
    """Everything a row says, as plain values."""
    tissue = row.tissue
    mask = tissue and (
        bytes(tissue.packed),
        tissue.width,
        tissue.height,
        tissue.pixel_x_px,
        tissue.pixel_y_px,
    )
    return (
        row.slide, row.status, row.detail, row.header, row.mpp_source, mask, row.tissue_mm2, row.patient,
        row.cohort, sorted(row.labels.items()), sorted(row.extra.items()), row.digest, row.reuse_digest,
        row.read_status, row.read_detail, row.has_thumbnail, row.content,
    )  # fmt: skip


def _checked(plan: ScanPlan, manifest: SnapshotManifest, log: RunLog) -> SnapshotManifest:
    log.event(
        "snapshot",
        snapshot_id=manifest.snapshot_id,
        num_slides=manifest.num_slides,
        num_ok=manifest.num_ok,
        tissue_mm2=round(manifest.tissue_mm2, 3),
        reasons=manifest.reasons,
    )
    if manifest.num_ok:
        return manifest
    rows = load_rows(plan.index, IndexLayout.snapshot_rows(manifest.snapshot_id)) or []
    raise no_usable_slide(plan.slides.uri, rows)


def no_usable_slide(slides_uri: str, rows: list[SlideRow]) -> UserError:
    """What to tell where nothing can be used: reasons by count, slides by name, and the cure."""
    if not rows:
        return UserError(
            f"there is no slide in {slides_uri}",
            hint="check slides.uri and slides.include; the folder is empty",
        )
    result: ScanResult = count(rows)
    counts = ", ".join(f"{number} {reason}" for reason, number in result.reasons.items())
    named = "".join(f"\n  {row.slide}: {row.status}: {row.detail}" for row in rows[:_NAMED_SLIDES])
    more = f"\n  … and {len(rows) - _NAMED_SLIDES} more" if len(rows) > _NAMED_SLIDES else ""
    return UserError(
        f"none of the {len(rows)} slides in {slides_uri} can be used ({counts}):{named}{more}",
        hint=_cure(result),
    )


def _cure(result: ScanResult) -> str:
    cures = {
        "no-mpp": "give their resolution in a CSV with the columns slide,mpp: slides.overrides=URI",
        "too-coarse": "raise index.max_mpp if such coarse slides are meant",
        "no-tissue": "try index.tissue.method=saturation",
        "excluded": "the overrides exclude them",
        "denied": "give the credentials in use the right to read these objects, and index again",
    }
    found = [cures[reason] for reason in result.reasons if reason in cures]
    return "; ".join(found) or "check that slides.uri holds whole-slide images that arrived whole"
