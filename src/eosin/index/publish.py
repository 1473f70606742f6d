"""Publishing of a snapshot: the shards of a scan merged into one immutable table."""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

import pyarrow as pa
import pyarrow.compute as pc

from eosin import __version__
from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.index.merge import MergedParts
from eosin.index.plan import ScanPlan, plan_scan
from eosin.index.read_slide import INDEXER_VERSION
from eosin.index.rows import FLEETING, OK, SlideRow, write_tables
from eosin.index.scan import by_frequency, load_series, load_shard
from eosin.index.snapshot import Latest, load_manifest, load_snapshot_rows, move_latest, read_latest
from eosin.index.sources import attribution, owner_of
from eosin.index.verify import Smallest, chosen_to_verify, disagreement, is_comparable
from eosin.layout import IndexLayout
from eosin.observability import RunLog
from eosin.records import SnapshotManifest, publish_once
from eosin.slides.errors import cure_of
from eosin.storage import put_if_absent
from eosin.words import counted

DISAGREES = "disagrees"
_ROWS, _MASKS = "slides.parquet", "masks.bin"
_NAMED_SLIDES = 5
_SPARE_PARTS = 4
_VERIFIED_AT_ONCE = 4  # each a copy on the disk, and a process
_LEAST_SHARE = 0.5
"""Of the usable slides of the newest snapshot; one with fewer does not take its place unasked."""


def publish_snapshot(
    config: RunConfig, num_shards: int, log: RunLog, *, plan: ScanPlan | None = None
) -> SnapshotManifest:
    """Publish the snapshot of the scan whose `num_shards` shards are there, and make it the newest.

    Without a `plan` the scan is that of what the folder holds now.
    The same slides give the same snapshot, byte for byte, whatever the number of shards and their
    order; published again it is a no-op. Raises `UserError` where a shard is missing; after publishing, where
    no slide can be used (the message counts the reasons and names slides); and where it has far fewer usable
    slides than the newest one, which then stays the newest, unless `index.allow_fewer_slides`.
    """
    plan = plan or plan_scan(config)
    for name in plan.unknown_overrides:
        log.event("warning", detail=f"the overrides name {name}, which is no slide (or several)")
    for name in plan.unknown_contours:
        log.event("warning", detail=f"the contours {name} are of no slide (or of several)")
    latest = read_latest(plan.index)
    newest = load_manifest(plan.index, latest.snapshot_id) if latest is not None else None
    same_scan = latest is not None and latest.scan_id == plan.scan_id
    if newest is not None and same_scan and not FLEETING & set(newest.reasons):
        return _checked(plan, newest, log)
    with _merged(plan, num_shards) as parts:
        manifest = _publish(plan, parts, config.patches.stage_dir)
    if newest is not None and not config.index.allow_fewer_slides:
        _refuse_far_fewer(plan, manifest, newest)
    moved = Latest(snapshot_id=manifest.snapshot_id, scan_id=plan.scan_id)
    if latest is not None or not put_if_absent(plan.index, IndexLayout.LATEST, moved.to_json()):
        move_latest(plan.index, moved)
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
        f"of {plan.index.uri} has {newest.num_ok}{of}; that one stays the newest",
        hint="check the folder, or take another --index; where the slides are gone indeed, `eosin"
        " index --allow-fewer` or index.allow_fewer_slides. What was found: eosin index inspect"
        f" {quote(plan.index.uri)} --snapshot {manifest.snapshot_id}",
    )


def _merged(plan: ScanPlan, num_shards: int) -> MergedParts:
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
    return MergedParts(plan.index, keys, num_held=2 * num_shards + _SPARE_PARTS)


@dataclass
class _Tally:
    """What the rows that pass through add up to."""

    disagreeing: Mapping[str, str]
    """What another reader shows otherwise, by slide."""
    statuses: Counter[str] = field(default_factory=Counter)
    tissue_mm2: float = 0.0
    owners: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Usable slides by cohort or source, licence and DOI."""
    smallest: Smallest = field(default_factory=Smallest)

    def tallied(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            if self.disagreeing:
                table = self._marked(table)
            self.smallest.look(table)
            self.statuses.update(table.column("status").to_pylist())
            columns = table.select(["cohort", "source", "extra", "tissue_mm2"])
            usable = columns.filter(pc.equal(table.column("status"), OK))
            for cohort, source, extra, tissue_mm2 in zip(*(each.to_pylist() for each in usable), strict=True):
                self.owners[owner_of(cohort or source, json.loads(extra))] += 1
                self.tissue_mm2 += tissue_mm2
            yield table

    def _marked(self, table: pa.Table) -> pa.Table:
        slides = table.column("slide").to_pylist()
        columns = {name: table.column(name).to_pylist() for name in ("status", "detail")}
        for number in (i for i, slide in enumerate(slides) if slide in self.disagreeing):
            columns["status"][number] = DISAGREES
            columns["detail"][number] = self.disagreeing[slides[number]]
        for name, values in columns.items():
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
        return table


def _verified(plan: ScanPlan, smallest: Smallest, stage_dir: str | None) -> tuple[dict[str, str], int]:
    """Slides that another reader shows otherwise, with what, and how many it was asked about."""
    chosen = chosen_to_verify(smallest)
    with ThreadPoolExecutor(_VERIFIED_AT_ONCE, "verify") as pool:
        answers = pool.map(lambda row: disagreement(plan.slides, plan.index, row, stage_dir), chosen)
        found = {row.slide: answer for row, answer in zip(chosen, answers, strict=True)}
    asked = {slide: answer for slide, answer in found.items() if answer is not None}
    return {slide: answer for slide, answer in asked.items() if answer}, len(asked)


@contextmanager
def verified_early(plan: ScanPlan, stage_dir: str | None) -> Iterator[Callable[[SlideRow], object]]:
    """Given rows as they are made, has the smallest slide of the listing held against another reader.

    It is the smallest of its kind too, so the merge will ask for just this answer, and finds it in the index.
    """
    sizes = ((sum(each.size_bytes for each in unit.objects), unit.objects[0].key) for unit in plan.units)
    _, smallest = min(sizes, default=(0, ""))
    with ThreadPoolExecutor(1, "verify") as pool:

        def watch(row: SlideRow) -> None:
            if row.slide == smallest and is_comparable(row):
                pool.submit(disagreement, plan.slides, plan.index, row, stage_dir)

        yield watch


def _written(parts: MergedParts, folder: Path, disagreeing: Mapping[str, str]) -> _Tally:
    tally = _Tally(disagreeing)
    with (folder / _ROWS).open("wb") as file, (folder / _MASKS).open("wb") as masks:
        write_tables(tally.tallied(parts.tables()), file, masks)
    return tally


def _publish(plan: ScanPlan, parts: MergedParts, stage_dir: str | None) -> SnapshotManifest:
    sources = [each.model_dump(mode="json") for each in plan.sources]
    with tempfile.TemporaryDirectory(prefix="eosin-index-") as name:
        folder = Path(name)
        tally = _written(parts, folder, {})
        disagreeing, num_verified = _verified(plan, tally.smallest, stage_dir)
        if disagreeing:
            tally = _written(parts, folder, disagreeing)
        digests = [_digest(folder / each) for each in (_ROWS, _MASKS)]
        identity = json.dumps([plan.slides.uri, *sources, INDEXER_VERSION, *digests])
        snapshot_id = hashlib.sha256(identity.encode()).hexdigest()[:16]
        with ThreadPoolExecutor(2, "publish") as pool:
            series = pool.submit(load_series, plan)
            published = load_manifest(plan.index, snapshot_id)
            if published is not None:
                return published
            keys = IndexLayout.snapshot_masks(snapshot_id), IndexLayout.snapshot_rows(snapshot_id)
            list(pool.map(put_if_absent, [plan.index] * 2, keys, (folder / _MASKS, folder / _ROWS)))
    sorted_out = series.result()
    manifest = SnapshotManifest(
        snapshot_id=snapshot_id,
        rows_sha256=digests[0],
        slides_uri=plan.slides_uri,
        sources=tuple(sources),
        attribution=attribution(tally.owners, plan.sources),
        indexer_version=INDEXER_VERSION,
        num_slides=len(parts),
        num_ok=tally.statuses[OK],
        tissue_mm2=tally.tissue_mm2,
        reasons=by_frequency(tally.statuses),
        num_verified=num_verified,
        num_not_slides=plan.num_pictures + (sorted_out.num_not_slides if sorted_out else 0),
        eosin_version=__version__,
    )
    return publish_once(plan.index, IndexLayout.snapshot_marker(snapshot_id), manifest)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        f"no slide in {plan.slides_uri} can be used ({counts}):{named}{more}",
        hint=_cure(manifest.reasons),
    )


def _cure(reasons: dict[str, int]) -> str:
    found = [cure for cure in map(cure_of, reasons) if cure]
    return "; ".join(found) or "check that slides.uri holds whole-slide images that arrived whole"
