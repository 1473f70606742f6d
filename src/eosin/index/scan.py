"""The scan of a shard of the slides: sorted by content, known rows reused, others read and published."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from eosin.config import RunConfig
from eosin.config.index import IndexConfig
from eosin.errors import PermanentError, UserError
from eosin.index.columns import MappedRows
from eosin.index.listing import Unit, claims_other, claims_slide, head_of, in_shard, suffix_of, suffixes_of
from eosin.index.plan import ScanPlan, plan_scan
from eosin.index.read_slide import (
    INDEXER_VERSION,
    ScanContext,
    read_slide,
    reuse_digest,
    slide_digest,
    with_override,
)
from eosin.index.rows import FLEETING, OK, SlideRow, SlideRows, encode_rows, load_rows
from eosin.index.snapshot import load_manifest, load_snapshot_rows, read_latest
from eosin.index.sources import origin_of
from eosin.index.tissue_model import load_tissue_model, model_digest
from eosin.layout import IndexLayout
from eosin.observability import RunLog
from eosin.records import load_record
from eosin.records.base import Record, publish_once
from eosin.slides.dicom import read_series_uid
from eosin.slides.errors import SlideError
from eosin.slides.header import HEAD_BYTES, begins_as_slide, is_dicom, open_range
from eosin.slides.model import SlideObject
from eosin.storage import AccessDenied, NotFound, ObjectChanged, ObjectInfo, Store
from eosin.storage.range_file import BLOCK_BYTES


class PreviousRows:
    """The newest snapshot's rows, by the objects they were made of; each is made when it is asked for."""

    def __init__(self, rows: MappedRows | None) -> None:
        self._rows = rows
        self._by_object: dict[str, int] = dict(rows.objects()) if rows is not None else {}

    def reusable(self, plan: ScanPlan, config: IndexConfig, unit: Unit) -> list[SlideRow] | None:
        """The unit's rows with the overrides joined anew; None where any of it must be read again."""
        rows = self._rows_among(each.key for each in unit.objects)
        covered = {(each.key, each.etag) for row in rows for each in row.header.objects}
        if covered != {(each.key, each.etag) for each in unit.objects}:
            return None
        if not all(_current(plan, config, row) for row in rows):
            return None
        return [
            replace(
                with_override(row, plan.override(row.header.objects)), **origin_of(plan.slides, row.slide)
            )
            for row in rows
        ]

    def groups(self, objects: Mapping[str, ObjectInfo]) -> list[tuple[str, ...]]:
        """Keys of those of `objects` that made up a slide and have not changed since, by slide.

        A series may have grown since: where any object of the snapshot's slides is new, changed or to be read
        again, none is taken for known.
        """
        groups: list[tuple[str, ...]] = []
        for row in self._rows_among(objects):
            stored = row.header.objects
            same = all(each.key in objects and objects[each.key].etag == each.etag for each in stored)
            if not same or row.read_status in FLEETING:
                return []
            groups.append(tuple(each.key for each in stored))
        return groups if sum(map(len, groups)) == len(objects) else []

    def format_of(self, info: ObjectInfo) -> str | None:
        """Of the slide that an unchanged object was part of; None where that is not known."""
        for row in self._rows_among([info.key]):
            etags = {each.key: each.etag for each in row.header.objects}
            if row.read_status not in FLEETING and etags[info.key] == info.etag:
                return row.header.format
        return None

    def _rows_among(self, objects: Iterable[str]) -> list[SlideRow]:
        """Rows that any of the objects was part of."""
        if self._rows is None:
            return []
        found = {self._by_object[key]: None for key in objects if key in self._by_object}
        return [self._rows.alone(i) for i in found]


def load_previous(store: Store) -> PreviousRows:
    """Rows of the newest snapshot; none where there is no snapshot, or one of another indexer."""
    latest = read_latest(store)
    manifest = load_manifest(store, latest.snapshot_id) if latest else None
    if manifest is None or manifest.indexer_version != INDEXER_VERSION:
        return PreviousRows(None)
    try:
        return PreviousRows(load_snapshot_rows(store, manifest))
    except (NotFound, PermanentError):  # what cannot be read anew is made anew
        return PreviousRows(None)


def _current(plan: ScanPlan, config: IndexConfig, row: SlideRow) -> bool:
    digest = slide_digest(plan.slides.uri, row.header.objects)
    model = model_digest(plan.tissue_model)
    wanted = reuse_digest(digest, config, plan.override(row.header.objects), model)
    return row.reuse_digest == wanted and row.read_status not in FLEETING


# What an object is: the series and pyramid it belongs to; a slide by itself; or no slide.
_Instance = tuple[str, str]
_ALONE, _NO_SLIDE = ("", ""), None

_Take = Callable[[str, bytes], None]
"""Is given key and first block of a slide that was looked at, before another is looked at."""


class ScanSeries(Record):
    """`series.json` of a scan: what the objects are whose names do not tell."""

    slides: tuple[tuple[str, ...], ...]
    """Keys of the objects of each slide, sorted."""
    num_not_slides: int
    """Objects that are no slides: counted, not listed."""


def divided(plan: ScanPlan, previous: PreviousRows, num_threads: int, take: _Take) -> list[Unit]:
    """The plan's units, unsorted ones taken apart into slides, in key order.

    Only the objects' headers tell which series they belong to, so the first shard reads one block of each and
    publishes what it found for the others; objects whose slide a former snapshot holds are not read. `take`
    is called in several threads, for slides by their names whose content agrees.
    """
    objects = {each.key: each for unit in plan.units for each in unit.objects}
    found = (None if plan.is_new else load_series(plan)) or _sort(plan, previous, num_threads, take)
    told = {key for group in found.slides for key in group}
    units = [unit for unit in plan.units if unit.kind == "slide" and unit.objects[0].key not in told]
    units += [Unit(keys[0], "unsorted", tuple(objects[key] for key in keys)) for keys in found.slides]
    return sorted(units, key=lambda unit: unit.objects[0].key)


def load_series(plan: ScanPlan) -> ScanSeries | None:
    """What a shard of the scan has found out already."""
    return load_record(ScanSeries, plan.index, IndexLayout.scan_series(plan.scan_id))


def _sort(plan: ScanPlan, previous: PreviousRows, num_threads: int, take: _Take) -> ScanSeries:
    def is_dicom_inside(each: ObjectInfo) -> bool:
        """By what is known, else by content; what cannot be read now says so when it is read as a slide."""
        known = previous.format_of(each)
        if known is not None:
            return known == "dicom"
        head = head_of(plan.slides, each, BLOCK_BYTES)
        if head and not is_dicom(head):
            take(each.key, head)
        return is_dicom(head)

    # Lines of a manifest and files of a folder; what stands for a series of an archive is a slide already.
    named = [
        unit.objects[0] for unit in plan.units
        if unit.kind == "slide" and len(unit.objects) == 1 and unit.key == unit.objects[0].key
    ]  # fmt: skip
    disguises = suffixes_of((each for each in named if claims_other(each.key)), is_dicom_inside, num_threads)
    told_by_name = {
        each.key for each in named if claims_other(each.key) and suffix_of(each.key) not in disguises
    }
    unsorted = [each for unit in plan.units if unit.kind == "unsorted" for each in unit.objects]
    objects = {each.key: each for each in (*unsorted, *named) if each.key not in told_by_name}
    known = previous.groups(objects)
    told = {key for group in known for key in group}
    groups, num_not_slides = split_series(
        plan.slides,
        [each for each in objects.values() if each.key not in told],
        num_threads,
        {each.key for each in named},
    )
    groups += known
    found = ScanSeries(slides=tuple(sorted(tuple(sorted(group)) for group in groups)),
                       num_not_slides=num_not_slides)  # fmt: skip
    # Of shards that sort at once one is right for all: an object may change between their readings.
    return publish_once(plan.index, IndexLayout.scan_series(plan.scan_id), found)


def split_series(
    store: Store, objects: Sequence[ObjectInfo], num_threads: int, meant: Set[str] = frozenset()
) -> tuple[list[tuple[str, ...]], int]:
    """Keys of the objects of each slide, and how many objects are no slide.

    Instances of one series and pyramid are one slide, those that name no pyramid (labels) with the first of
    their series; each other slide is an object by itself. `meant`: keys of objects that are slides, say
    their names or a manifest, so that another content is a fault to be named.
    """
    with ThreadPoolExecutor(num_threads, "series") as pool:
        found = pool.map(lambda each: _kind(store, each, each.key in meant), objects)
        kinds = {each.key: kind for each, kind in zip(objects, found, strict=True)}
    pyramids: dict[str, list[str]] = {}
    for kind in kinds.values():
        if kind and kind != _ALONE:
            pyramids.setdefault(kind[0], []).append(kind[1])
    groups: dict[tuple[str, str, str], list[str]] = {}
    for key, kind in kinds.items():
        if kind == _ALONE:
            groups[key, "", ""] = [key]
        elif kind is not _NO_SLIDE:
            series, pyramid = kind
            named = sorted(filter(None, pyramids[series]))
            groups.setdefault(("", series, pyramid or (named[0] if named else "")), []).append(key)
    return [tuple(group) for group in groups.values()], sum(kind is _NO_SLIDE for kind in kinds.values())


def _kind(store: Store, info: ObjectInfo, meant: bool) -> _Instance | None:
    """What an object is; `_ALONE` too where it may not be read, so that its row can say so."""
    unclaimed = _ALONE if meant or claims_slide(info.key) else _NO_SLIDE
    if info.size_bytes == 0:
        return unclaimed
    stored = SlideObject(info.key, info.etag, info.size_bytes)
    try:
        file = open_range(store, stored)
        head = file.read(HEAD_BYTES)
        if is_dicom(head):
            file.seek(0)
            series, pyramid = read_series_uid(file, stored)
            return (series, pyramid) if series else _ALONE
        return _ALONE if begins_as_slide(head) else unclaimed
    except (SlideError, ObjectChanged, NotFound, AccessDenied):
        return _ALONE


_UNITS_A_PART = 128
_MOST_HEADS = 512  # 32 MiB of them
_PROGRESS_EVERY_S = 2.0


class ScanShard(Record):
    """Marker of a shard: how many parts it has, and what they hold."""

    num_parts: int
    """Parquet parts of the shard."""
    num_slides: int
    """Slides of the shard."""
    num_ok: int
    """Those that can be used."""
    reasons: dict[str, int]
    """How many cannot, by status."""
    num_fleeting: int
    """Rows that the next scan makes again."""


@dataclass(frozen=True)
class ScanResult:
    """What one shard holds."""

    scan_id: str
    num_slides: int
    num_ok: int
    reasons: dict[str, int] = field(default_factory=dict)
    """How many slides are not used, by status."""


def scan_shard(
    config: RunConfig, shard: int, num_shards: int, log: RunLog, *, plan: ScanPlan | None = None,
    watch: Callable[[SlideRow], object] = lambda row: None,
) -> ScanResult:  # fmt: skip
    """Read the slides of one shard and publish their rows, in parts of 128 slides and a marker last.

    Without a `plan` the slides are listed now. `watch` is given each row that is made anew, by the thread
    that made it.
    An object of the listing that was deleted or replaced since is a row with its reason.
    A shard already there is not read again, but for slides that could not be read for want of a right, or
    were replaced meanwhile. Rows of the newest snapshot are reused where neither the slide nor what its
    reading depended on has changed. Killed and run again, it goes on after the last part it published.
    Memory is that of three parts and of the slides in flight. Raises `UserError` for a shard number or a
    configuration that cannot be, `TransientError` where the store stays away.
    """
    if not 0 <= shard < num_shards:
        raise UserError(f"shard {shard} of {num_shards}: it must be from 0 to {num_shards - 1}")
    plan = plan or plan_scan(config)
    found = None if plan.is_new else load_shard(plan, shard, num_shards)
    if found is None or found.num_fleeting:
        found = _scan(config, plan, shard, num_shards, log, watch)
        plan.index.put(IndexLayout.shard_marker(plan.scan_id, shard, num_shards), found.to_json())
    result = ScanResult(plan.scan_id, found.num_slides, found.num_ok, found.reasons)
    log.event("shard-scanned", shard=shard, num_shards=num_shards, scan_id=plan.scan_id,
              num_slides=result.num_slides, num_ok=result.num_ok, reasons=result.reasons)  # fmt: skip
    return result


def load_shard(plan: ScanPlan, shard: int, num_shards: int) -> ScanShard | None:
    """The marker of a shard; None where it was never completed."""
    return load_record(ScanShard, plan.index, IndexLayout.shard_marker(plan.scan_id, shard, num_shards))


def by_frequency(statuses: Counter[str]) -> dict[str, int]:
    """Reasons why slides are not used, the most frequent first."""
    unused = [(status, number) for status, number in statuses.items() if status != OK]
    return dict(sorted(unused, key=lambda item: (-item[1], item[0])))


def _scan(
    config: RunConfig, plan: ScanPlan, shard: int, num_shards: int, log: RunLog,
    watch: Callable[[SlideRow], object],
) -> ScanShard:  # fmt: skip
    previous = load_previous(plan.index)
    context = ScanContext(
        plan.slides, plan.index, config.index, config.patches.stage_dir,
        load_tissue_model(config.index.tissue.onnx, plan.tissue_model), model_digest(plan.tissue_model),
    )  # fmt: skip
    own = {unit.key: unit for unit in plan.units if in_shard(unit, shard, num_shards)}
    # While the store is asked for first blocks, slides in between are read: the one waits, the other works.
    at_once = set(
        [key for key, unit in own.items() if len(unit.objects) == 1][:: len(own) // _UNITS_A_PART + 1]
    )
    progress = _ScanProgress(log, len(own))
    heads: dict[str, bytes] = {}
    ahead: dict[str, list[SlideRow]] = {}

    def rows_of(unit: Unit) -> list[SlideRow]:
        head, rows = heads.pop(unit.key, b""), ahead.pop(unit.key, None)
        return rows or _rows_of(context, plan, previous, unit, head, progress, log, watch)

    def take(key: str, head: bytes) -> None:
        if key in own and len(heads) < _MOST_HEADS:
            heads[key] = head
            if key in at_once:
                ahead[key] = rows_of(own[key])

    every = divided(plan, previous, config.index.slides_in_flight, take)
    units = [unit for unit in every if in_shard(unit, shard, num_shards)]
    progress.total = len(units)
    scan = IndexLayout.scan(plan.scan_id)
    there = set[str]() if plan.is_new else {each.key for each in plan.index.list(scan)}

    def begun(number: int) -> tuple[str, SlideRows | Iterator[list[SlideRow]]]:
        """A part and its rows, which are there or are being made."""
        key = IndexLayout.shard_part(plan.scan_id, shard, num_shards, number)
        part = units[number * _UNITS_A_PART : (number + 1) * _UNITS_A_PART]
        rows = load_rows(plan.index, key) if key in there else None
        if rows is None or has_fleeting(rows):
            return key, pool.map(rows_of, part)
        progress.add(len(part), rows)
        return key, rows

    num_parts = -(-len(units) // _UNITS_A_PART)
    with ThreadPoolExecutor(config.index.slides_in_flight, "scan") as pool:
        try:
            # The next part begins before this one has ended: no thread waits for another's last slide.
            for (key, found), _ in itertools.pairwise(
                itertools.chain(map(begun, range(num_parts)), [("", iter(()))])
            ):
                rows = found if isinstance(found, SlideRows) else [row for some in found for row in some]
                if rows is not found:
                    plan.index.put(key, encode_rows(rows))
                progress.count(rows)
                _refuse_a_wall(context, progress, rows)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return progress.result(num_parts)


def has_fleeting(rows: Iterable[SlideRow]) -> bool:
    """Whether any of the rows may come out otherwise though no slide has changed."""
    return any(row.read_status in FLEETING for row in rows)


def _refuse_a_wall(context: ScanContext, progress: "_ScanProgress", rows: Sequence[SlideRow]) -> None:
    """One slide that may not be read is its own affair; where none of many may, the credentials are wrong."""
    num_read = sum(progress.read_statuses.values())
    if num_read >= _UNITS_A_PART and progress.read_statuses["denied"] == num_read:
        raise UserError(
            f"none of {num_read} slides in {rows[0].source or context.slides.uri} may be read: "
            f"{rows[0].read_detail}",
            hint="give the credentials in use the right to read (s3:GetObject) under this prefix",
        )


def _rows_of(
    context: ScanContext,
    plan: ScanPlan,
    previous: PreviousRows,
    unit: Unit,
    head: bytes,
    progress: "_ScanProgress",
    log: RunLog,
    watch: Callable[[SlideRow], object],
) -> list[SlideRow]:
    rows = previous.reusable(plan, context.config, unit)
    if rows is None:
        override = plan.override(unit.objects)
        row = read_slide(context, unit.objects, override, head)
        if unit.kind == "slide" and row.header.format == "dicom" and claims_other(unit.key):
            detail = "it is DICOM by another name, and its series was not put together: name it .dcm"
            row = replace(row, read_status="unsupported-layout", read_detail=detail)
        rows = [with_override(row, override)]
        if rows[0].status != OK:
            log.event("slide-not-used", slide=rows[0].slide, status=rows[0].status, detail=rows[0].detail)
        watch(rows[0])
    progress.add(1, rows)
    return rows


class _ScanProgress:
    """Thread-safe count of what is done, reported every few seconds and at the end."""

    def __init__(self, log: RunLog, total: int) -> None:
        self._log, self.total = log, total
        self._done = self._num_ok = 0
        self._reported_s = 0.0
        self._lock = threading.Lock()
        self.statuses, self.read_statuses = Counter[str](), Counter[str]()

    def count(self, rows: Iterable[SlideRow]) -> None:
        """Take a whole part into account."""
        for row in rows:
            self.statuses[row.status] += 1
            self.read_statuses[row.read_status] += 1

    def result(self, num_parts: int) -> ScanShard:
        return ScanShard(
            num_parts=num_parts, num_slides=sum(self.statuses.values()), num_ok=self.statuses[OK],
            reasons=by_frequency(self.statuses),
            num_fleeting=sum(self.read_statuses[each] for each in FLEETING),
        )  # fmt: skip

    def add(self, num_units: int, rows: Sequence[SlideRow]) -> None:
        with self._lock:
            self._done += num_units
            self._num_ok += sum(row.status == OK for row in rows)
            now_s = time.monotonic()
            if now_s - self._reported_s >= _PROGRESS_EVERY_S or self._done == self.total:
                self._reported_s = now_s
                self._log.progress(self._done, self.total, "slides", ok=self._num_ok)
