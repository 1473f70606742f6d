"""Scan one shard of the slides, and publish its rows whole."""

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
from eosin.index.read_slide import Reading, read_slide
from eosin.index.rows import FLEETING, OK, SlideRow, decode_rows, encode_rows
from eosin.index.series import divided, split_series
from eosin.index.tissue_model import load_tissue_model, model_digest
from eosin.layout import IndexLayout
from eosin.observability import RunLog
from eosin.storage import NotFound, Store

_UNITS_A_PART = 128
_PROGRESS_EVERY_S = 2.0


@dataclass(frozen=True)
class ScanResult:
    """What one shard holds."""

    num_slides: int
    num_ok: int
    reasons: dict[str, int] = field(default_factory=dict)
    """How many slides are not used, by status."""


def scan_shard(config: RunConfig, shard: int, num_shards: int, log: RunLog) -> ScanResult:
    """Read the slides of one shard and publish their rows. A shard already there is not read again, but
    for slides that could not be read for want of a right, or were replaced meanwhile.

    Rows of the newest snapshot are reused where neither the slide nor what its reading depended on has
    changed. Killed and run again, it goes on after the last part it published. Raises `UserError` for a
    shard number or a configuration that cannot be, `TransientError` where the store stays away.
    """
    if not 0 <= shard < num_shards:
        raise UserError(f"shard {shard} of {num_shards}: it must be from 0 to {num_shards - 1}")
    plan = plan_scan(config)
    key = IndexLayout.shard(plan.scan_id, shard, num_shards)
    rows = load_rows(plan.index, key)
    if rows is None or has_fleeting(rows):
        rows = _scan(config, plan, shard, num_shards, log)
        plan.index.put(key, encode_rows(rows))
    result = count(rows)
    log.event("shard-scanned", shard=shard, num_shards=num_shards, scan_id=plan.scan_id,
              num_slides=result.num_slides, num_ok=result.num_ok, reasons=result.reasons)  # fmt: skip
    return result


def count(rows: Sequence[SlideRow]) -> ScanResult:
    """Rows by status; reasons sorted by how often they occur."""
    statuses = Counter(row.status for row in rows)
    num_ok = statuses.pop(OK, 0)
    return ScanResult(len(rows), num_ok, dict(sorted(statuses.items(), key=lambda item: (-item[1], item[0]))))


def load_rows(store: Store, key: str) -> list[SlideRow] | None:
    """Published rows, or None where they are not there."""
    try:
        return list(decode_rows(store.get(key), source=f"{store.uri}/{key}"))
    except NotFound:
        return None


def _scan(config: RunConfig, plan: ScanPlan, shard: int, num_shards: int, log: RunLog) -> list[SlideRow]:
    previous = load_previous(plan.index)
    every = divided(plan, previous, config.index.slides_in_flight)
    units = [unit for unit in every if in_shard(unit, shard, num_shards)]
    reading = Reading(
        plan.slides, plan.index, config.index, config.patches.stage_dir,
        load_tissue_model(config.index.tissue.onnx, plan.tissue_model), model_digest(plan.tissue_model),
    )  # fmt: skip
    progress = _Progress(log, len(units))
    rows: list[SlideRow] = []
    with ThreadPoolExecutor(config.index.slides_in_flight, "scan") as pool:
        for number, start in enumerate(range(0, len(units), _UNITS_A_PART)):
            key = IndexLayout.shard_part(plan.scan_id, shard, num_shards, number)
            part = units[start : start + _UNITS_A_PART]
            made = load_rows(plan.index, key)
            if made is None or has_fleeting(made):
                made = _flat(
                    pool.map(lambda unit: _rows_of(reading, plan, previous, unit, progress, log), part)
                )
                if len(units) > _UNITS_A_PART:
                    plan.index.put(key, encode_rows(made))
            else:
                progress.add(len(part), made)
            rows += made
            _refuse_a_wall(reading, rows)
    return rows


def has_fleeting(rows: Iterable[SlideRow]) -> bool:
    """Whether any of the rows may come out otherwise though no slide has changed."""
    return any(row.read_status in FLEETING for row in rows)


def _refuse_a_wall(reading: Reading, rows: Sequence[SlideRow]) -> None:
    """One slide that may not be read is its own affair; where none of many may, the credentials are wrong."""
    if len(rows) >= _UNITS_A_PART and all(row.read_status == "denied" for row in rows):
        raise UserError(
            f"none of {len(rows)} slides in {reading.slides.uri} may be read: {rows[0].read_detail}",
            hint="give the credentials in use the right to read (s3:GetObject) under this prefix",
        )


def _flat(parts: Iterable[list[SlideRow]]) -> list[SlideRow]:
    return [row for part in parts for row in part]


def _rows_of(
    reading: Reading, plan: ScanPlan, previous: PreviousRows, unit: Unit, progress: _Progress, log: RunLog
) -> list[SlideRow]:
    rows = previous.reusable(plan, reading.config, unit)
    if rows is None:
        whole = unit.kind != "dicom-folder"
        groups = [unit.objects] if whole else split_series(reading.slides, unit.objects)
        rows = [read_slide(reading, group, plan.override(group)) for group in groups]
        for row in rows:
            if row.status != OK:
                log.event("slide-not-used", slide=row.slide, status=row.status, detail=row.detail)
    progress.add(1, rows)
    return rows


class _Progress:
    """Thread-safe count of what is done, reported every few seconds and at the end."""

    def __init__(self, log: RunLog, total: int) -> None:
        self._log, self._total = log, total
        self._done = self._num_ok = 0
        self._reported_s = 0.0
        self._lock = threading.Lock()

    def add(self, num_units: int, rows: Sequence[SlideRow]) -> None:
        with self._lock:
            self._done += num_units
            self._num_ok += sum(row.status == OK for row in rows)
            now_s = time.monotonic()
            if now_s - self._reported_s >= _PROGRESS_EVERY_S or self._done == self._total:
                self._reported_s = now_s
                self._log.progress(self._done, self._total, "slides", ok=self._num_ok)
