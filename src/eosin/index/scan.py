"""The scan of one shard of the slides, its rows published whole."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.index.listing import Unit, in_shard
from eosin.index.plan import ScanPlan, plan_scan
from eosin.index.previous import PreviousRows, load_previous
from eosin.index.read_slide import ScanContext, read_slide
from eosin.index.rows import FLEETING, OK, SlideRow, encode_rows, load_rows
from eosin.index.series import divided
from eosin.index.tissue_model import load_tissue_model, model_digest
from eosin.layout import IndexLayout
from eosin.observability import RunLog
from eosin.records import load_record
from eosin.records.base import Record

_UNITS_A_PART = 128
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
    config: RunConfig, shard: int, num_shards: int, log: RunLog, *, scan_id: str = ""
) -> ScanResult:
    """Read the slides of one shard and publish their rows, in parts of 128 slides and a marker last.

    `scan_id` names a scan that was opened, whose listing is worked from; empty: the slides are listed now.
    An object of the listing that was deleted or replaced since is a row with its reason.
    A shard already there is not read again, but for slides that could not be read for want of a right, or
    were replaced meanwhile. Rows of the newest snapshot are reused where neither the slide nor what its
    reading depended on has changed. Killed and run again, it goes on after the last part it published.
    Memory is that of one part and of the slides in flight. Raises `UserError` for a shard number or a
    configuration that cannot be, `TransientError` where the store stays away.
    """
    if not 0 <= shard < num_shards:
        raise UserError(f"shard {shard} of {num_shards}: it must be from 0 to {num_shards - 1}")
    plan = plan_scan(config, scan_id)
    found = load_shard(plan, shard, num_shards)
    if found is None or found.num_fleeting:
        found = _scan(config, plan, shard, num_shards, log)
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


def _scan(config: RunConfig, plan: ScanPlan, shard: int, num_shards: int, log: RunLog) -> ScanShard:
    previous = load_previous(plan.index)
    every = divided(plan, previous, config.index.slides_in_flight)
    units = [unit for unit in every if in_shard(unit, shard, num_shards)]
    context = ScanContext(
        plan.slides, plan.index, config.index, config.patches.stage_dir,
        load_tissue_model(config.index.tissue.onnx, plan.tissue_model), model_digest(plan.tissue_model),
    )  # fmt: skip
    progress = _ScanProgress(log, len(units))
    starts = range(0, len(units), _UNITS_A_PART)
    with ThreadPoolExecutor(config.index.slides_in_flight, "scan") as pool:
        for number, start in enumerate(starts):
            key = IndexLayout.shard_part(plan.scan_id, shard, num_shards, number)
            part = units[start : start + _UNITS_A_PART]
            rows: Sequence[SlideRow] | None = load_rows(plan.index, key)
            if rows is None or has_fleeting(rows):
                rows = _flat(
                    pool.map(lambda unit: _rows_of(context, plan, previous, unit, progress, log), part)
                )
                plan.index.put(key, encode_rows(rows))
            else:
                progress.add(len(part), rows)
            progress.count(rows)
            _refuse_a_wall(context, progress, rows)
    return progress.result(len(starts))


def has_fleeting(rows: Iterable[SlideRow]) -> bool:
    """Whether any of the rows may come out otherwise though no slide has changed."""
    return any(row.read_status in FLEETING for row in rows)


def _refuse_a_wall(context: ScanContext, progress: _ScanProgress, rows: Sequence[SlideRow]) -> None:
    """One slide that may not be read is its own affair; where none of many may, the credentials are wrong."""
    num_read = sum(progress.read_statuses.values())
    if num_read >= _UNITS_A_PART and progress.read_statuses["denied"] == num_read:
        raise UserError(
            f"none of {num_read} slides in {rows[0].source or context.slides.uri} may be read: "
            f"{rows[0].read_detail}",
            hint="give the credentials in use the right to read (s3:GetObject) under this prefix",
        )


def _flat(parts: Iterable[list[SlideRow]]) -> list[SlideRow]:
    return [row for part in parts for row in part]


def _rows_of(
    context: ScanContext,
    plan: ScanPlan,
    previous: PreviousRows,
    unit: Unit,
    progress: _ScanProgress,
    log: RunLog,
) -> list[SlideRow]:
    rows = previous.reusable(plan, context.config, unit)
    if rows is None:
        rows = [read_slide(context, unit.objects, plan.override(unit.objects))]
        if rows[0].status != OK:
            log.event("slide-not-used", slide=rows[0].slide, status=rows[0].status, detail=rows[0].detail)
    progress.add(1, rows)
    return rows


class _ScanProgress:
    """Thread-safe count of what is done, reported every few seconds and at the end."""

    def __init__(self, log: RunLog, total: int) -> None:
        self._log, self._total = log, total
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
            if now_s - self._reported_s >= _PROGRESS_EVERY_S or self._done == self._total:
                self._reported_s = now_s
                self._log.progress(self._done, self._total, "slides", ok=self._num_ok)
