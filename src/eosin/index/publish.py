"""Publishing of a snapshot: the shards of a scan merged into one immutable table."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

from eosin import __version__
from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.index.plan import ScanPlan, plan_scan
from eosin.index.read_slide import INDEXER_VERSION
from eosin.index.rows import FLEETING, OK, SlideRow, SlideRows, load_rows, write_rows
from eosin.index.scan import by_frequency, load_series, load_shard
from eosin.index.snapshot import Latest, load_manifest, load_snapshot_rows, move_latest, read_latest
from eosin.index.sources import attribution, owner_of
from eosin.index.verify import chosen_to_verify, disagreement
from eosin.layout import IndexLayout
from eosin.observability import RunLog
from eosin.records import SnapshotManifest, publish_once
from eosin.slides.errors import cure_of
from eosin.storage import Store, put_if_absent
from eosin.words import counted


class MergedRows:
    """Iterates over the rows of `keys` sorted by slide.

    The parts of a shard follow one another but for DICOM series, so a few parts a shard serve nearly
    every row; one that is needed again is read again. Memory is that of `num_held` parts and one name a
    slide. Raises `UserError` where a part is gone.
    """

    def __init__(self, store: Store, keys: Sequence[str], num_held: int) -> None:
        self._store, self._num_held = store, num_held
        self._held: OrderedDict[str, SlideRows] = OrderedDict()
        self._order = sorted(
            (slide, key, i)
            for key in keys
            for i, slide in enumerate(self._read(key).column("slide"))
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[SlideRow]:
        return (self._part(key)[i] for _, key, i in self._order)

    def _part(self, key: str) -> SlideRows:
        rows = self._held.pop(key, None) or self._read(key)
        self._held[key] = rows
        while len(self._held) > self._num_held:
            self._held.popitem(last=False)
        return rows

    def _read(self, key: str) -> SlideRows:
        rows = load_rows(self._store, key)
        if rows is None:
            raise UserError(
                f"{self._store.uri}/{key} is gone", hint="scan that shard again: eosin index --shard I/N"
            )
        return rows


DISAGREES = "disagrees"
_NAMED_SLIDES = 5
_SPARE_PARTS = 4
_LEAST_SHARE = 0.5
"""Of the usable slides of the newest snapshot; one with fewer does not take its place unasked."""


def publish_snapshot(
    config: RunConfig, num_shards: int, log: RunLog, *, scan_id: str = ""
) -> SnapshotManifest:
    """Publish the snapshot of the scan whose `num_shards` shards are there, and make it the newest.

    `scan_id` names a scan that was opened; empty: the scan of what the folder holds now.
    The same slides give the same snapshot, byte for byte, whatever the number of shards and their
    order; published again it is a no-op. Raises `UserError` where a shard is missing; after publishing, where
    no slide can be used (the message counts the reasons and names slides); and where it has far fewer usable
    slides than the newest one, which then stays the newest, unless `index.allow_fewer_slides`.
    """
    plan = plan_scan(config, scan_id)
    for name in plan.unknown_overrides:
        log.event("warning", detail=f"the overrides name {name}, which is no slide (or several)")
    for name in plan.unknown_contours:
        log.event("warning", detail=f"the contours {name} are of no slide (or of several)")
    latest = read_latest(plan.index)
    newest = load_manifest(plan.index, latest.snapshot_id) if latest is not None else None
    same_scan = latest is not None and latest.scan_id == plan.scan_id
    if newest is not None and same_scan and not FLEETING & set(newest.reasons):
        return _checked(plan, newest, log)
    manifest = _publish(plan, _merged(plan, num_shards), config.patches.stage_dir)
    if newest is not None and not config.index.allow_fewer_slides:
        _refuse_far_fewer(plan, manifest, newest)
    move_latest(plan.index, Latest(snapshot_id=manifest.snapshot_id, scan_id=plan.scan_id))
    return _checked(plan, manifest, log)


def _refuse_far_fewer(plan: ScanPlan, manifest: SnapshotManifest, newest: SnapshotManifest) -> None:
    """A mistyped folder, a moved one, a store that lists half: seldom what was meant."""
    if manifest.num_ok >= _LEAST_SHARE * newest.num_ok:
        return
    if not manifest.num_ok:
        raise no_usable_slide(plan, _rows(plan, manifest), manifest)
    of = "" if manifest.slides_uri == newest.slides_uri else f" of {newest.slides_uri}"
    raise UserError(
        f"{plan.slides_uri} has {counted(manifest.num_ok, 'usable slide')}, and the newest snapshot "
        f"of {plan.index.uri}"
        f" has {newest.num_ok}{of}; that one stays the newest",
        hint="check the folder, or take another --index; where the slides are gone indeed:"
        " --set index.allow_fewer_slides=true. What was found: eosin index inspect"
        f" {quote(plan.index.uri)} --snapshot {manifest.snapshot_id}",
    )


def _merged(plan: ScanPlan, num_shards: int) -> MergedRows:
    keys: list[str] = []
    missing: list[int] = []
    for shard in range(num_shards):
        found = load_shard(plan, shard, num_shards)
        if found is None:
            missing.append(shard)
            continue
        keys += [IndexLayout.shard_part(plan.scan_id, shard, num_shards, i) for i in range(found.num_parts)]
    if missing:
        names = ", ".join(f"{shard}/{num_shards}" for shard in missing[:10])
        raise UserError(
            f"{len(missing)} of {num_shards} shards of scan {plan.scan_id} are missing in {plan.index.uri}: "
            f"{names}",
            hint="run `eosin index --shard I/N` for each; where slides came or went meanwhile, name the scan "
            "that the shards printed: --scan ID",
        )
    return MergedRows(plan.index, keys, num_held=num_shards + _SPARE_PARTS)


@dataclass
class _Tally:
    """What the rows that pass through add up to."""

    digest: Any
    disagreeing: Mapping[str, str]
    """What another reader shows otherwise, by slide."""
    statuses: Counter[str] = field(default_factory=Counter)
    tissue_mm2: float = 0.0
    owners: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Usable slides by cohort or source, licence and DOI."""

    def counted(self, rows: Iterable[SlideRow]) -> Iterator[SlideRow]:
        for row in rows:
            if row.slide in self.disagreeing:
                detail = self.disagreeing[row.slide]
                row = replace(row, status=DISAGREES, detail=detail)
            self.digest.update(repr(row_identity(row)).encode())
            self.statuses[row.status] += 1
            self.tissue_mm2 += row.tissue_mm2 if row.status == OK else 0.0
            self.owners.update([owner_of(row)] if row.status == OK else ())
            yield row


def _verified(plan: ScanPlan, rows: MergedRows, stage_dir: str | None) -> tuple[dict[str, str], int]:
    """Slides that another reader shows otherwise, with what, and how many it was asked about."""
    found = {
        row.slide: disagreement(plan.slides, plan.index, row, stage_dir) for row in chosen_to_verify(rows)
    }
    asked = {slide: answer for slide, answer in found.items() if answer is not None}
    return {slide: answer for slide, answer in asked.items() if answer}, len(asked)


def _publish(plan: ScanPlan, rows: MergedRows, stage_dir: str | None) -> SnapshotManifest:
    disagreeing, num_verified = _verified(plan, rows, stage_dir)
    # The digest is of what the rows say, independent of how Parquet writes them.
    sources = [each.model_dump(mode="json") for each in plan.sources]
    identity = [plan.slides.uri, *sources, INDEXER_VERSION]
    tally = _Tally(hashlib.sha256(json.dumps(identity).encode()), disagreeing)
    with tempfile.TemporaryDirectory(prefix="eosin-index-") as folder:
        path, masks_path = Path(folder, "slides.parquet"), Path(folder, "masks.bin")
        with path.open("wb") as file, masks_path.open("wb") as masks:
            write_rows(tally.counted(rows), file, masks)
        snapshot_id = tally.digest.hexdigest()[:16]
        published = load_manifest(plan.index, snapshot_id)
        if published is not None:
            return published
        put_if_absent(plan.index, IndexLayout.snapshot_masks(snapshot_id), masks_path)
        rows_sha256 = _put_rows(plan.index, IndexLayout.snapshot_rows(snapshot_id), path)
    sorted_out = load_series(plan)
    manifest = SnapshotManifest(
        snapshot_id=snapshot_id,
        rows_sha256=rows_sha256,
        slides_uri=plan.slides_uri,
        sources=tuple(sources),
        attribution=attribution(tally.owners, plan.sources),
        indexer_version=INDEXER_VERSION,
        num_slides=len(rows),
        num_ok=tally.statuses[OK],
        tissue_mm2=tally.tissue_mm2,
        reasons=by_frequency(tally.statuses),
        num_verified=num_verified,
        num_not_slides=plan.num_pictures + (sorted_out.num_not_slides if sorted_out else 0),
        eosin_version=__version__,
    )
    return publish_once(plan.index, IndexLayout.snapshot_marker(snapshot_id), manifest)


def _put_rows(store: Store, key: str, path: Path) -> str:
    """Publish the rows unless some are there; SHA-256 of what is there then."""
    if not put_if_absent(store, key, path):
        return hashlib.sha256(store.get(key)).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        row.read_status, row.read_detail, row.has_thumbnail, row.content, row.uri, row.source,
        row.credentials, *([row.contours] if row.contours else []),
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
    raise no_usable_slide(plan, _rows(plan, manifest), manifest)


def _rows(plan: ScanPlan, manifest: SnapshotManifest) -> Sequence[SlideRow]:
    return load_snapshot_rows(plan.index, manifest)


def no_usable_slide(plan: ScanPlan, rows: Sequence[SlideRow], manifest: SnapshotManifest) -> UserError:
    """What to tell where nothing can be used: reasons by count, slides by name, and the cure."""
    counts = ", ".join(f"{number} {reason}" for reason, number in manifest.reasons.items())
    named = "".join(f"\n  {row.slide}: {row.status}: {row.detail}" for row in rows[:_NAMED_SLIDES])
    more = ""
    if len(rows) > _NAMED_SLIDES:
        command = f"eosin index inspect {quote(plan.index.uri)} --snapshot {manifest.snapshot_id}"
        more = f"\n  … and {len(rows) - _NAMED_SLIDES} more: {command}"
    return UserError(
        f"none of the {len(rows)} slides in {plan.slides_uri} can be used ({counts}):{named}{more}",
        hint=_cure(manifest.reasons),
    )


def _cure(reasons: dict[str, int]) -> str:
    found = [cure for cure in map(cure_of, reasons) if cure]
    return "; ".join(found) or "check that slides.uri holds whole-slide images that arrived whole"
