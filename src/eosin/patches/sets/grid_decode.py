"""Decoding of a grid set (`eosin decode --name`): shard by shard, each slide by one worker."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from eosin.config.patches import GridConfig
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.patches.decoding.quarantine import Quarantine
from eosin.patches.reading.reader import Pixels
from eosin.patches.request import PatchRequest
from eosin.patches.sampling.grid import GridPlan, plan_grid
from eosin.patches.sets.patchset import ShardMarker
from eosin.patches.sets.publish import (
    Throughput,
    encode_row,
    find_published,
    publish_manifest,
    publish_shard,
    rejected_patch,
    shard_suffix,
)
from eosin.patches.sets.set_spec import Decoding, pin_set
from eosin.patches.stream import GuardedReader, num_cores, open_reader, share_in_range
from eosin.records import PatchSetManifest, RejectedPatch
from eosin.records.patchset_shard import PatchRow
from eosin.slides.errors import SlideError

_PATCHES_PER_TASK = 16
_TASKS_AHEAD_PER_THREAD = 2
# A slide that is gone fails all its positions: so many of each slide and reason are named in a shard.
_NAMED_UP_TO = 8

# What became of a position: its row, why it could not be read, or None where its colours rejected it.
_Outcome = PatchRow | RejectedPatch | None


def decode_grid(job: Decoding, grid: GridConfig, log: RunLog) -> PatchSetManifest | None:
    """Decode this worker's slides; whoever finishes the last one publishes the manifest (else None).

    Worker i takes every `num_shards`-th slide from the i-th on, so a slide is staged once. Its patches
    are cut by `patches_per_shard`; shards that are published already are left alone. Raises `UserError`
    where no slide serves, or no position has enough tissue.
    """
    plan = plan_grid(job.snapshot, job.config.patches, grid)
    pin_set(job)
    own = range(job.shard, len(plan.slides), job.num_shards)
    log.event("grid-planned", name=job.name, slides=len(plan.slides), own_slides=len(own))
    published = find_published(job.store, job.name)
    whole = _parts_by_slide(published)
    speed = Throughput(log, len(own), "slides")
    quarantine = Quarantine(job.store, job.snapshot)
    with (
        open_reader(job.snapshot, plan.patches, quarantine=quarantine, share_tiles=True) as reader,
        _threads() as threads,
    ):
        for done, place in enumerate(own, 1):
            if not _is_whole(whole.get(place, [])):
                for key, requests in _shards(job.name, plan, place):
                    if key not in published:
                        speed.add(_publish(job, key, plan, requests, reader, threads, log), done - 1)
            speed.add((), done)
    speed.report()
    return _publish_if_whole(job, plan, log)


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(2, num_cores()), thread_name_prefix="eosin-grid")


def _shards(name: str, plan: GridPlan, place: int) -> Iterator[tuple[str, list[PatchRequest]]]:
    """Key and patches of each shard of a slide; one empty shard for a slide that gives none."""
    requests, size = plan.slide(place), plan.grid.patches_per_shard
    num_parts = max(1, -(-len(requests) // size))
    for part in range(num_parts):
        suffix = shard_suffix(plan.grid.format)
        key = RunLayout.patch_set_slide_shard(name, place, part, num_parts, suffix)
        yield key, requests[part * size : (part + 1) * size]


def _parts_by_slide(published: set[str]) -> dict[int, list[tuple[int, str]]]:
    """Of each slide's number: how many parts it has, and the key, for each part that is published."""
    found: dict[int, list[tuple[int, str]]] = {}
    for key in sorted(published):
        place = RunLayout.slide_part_of(RunLayout.patch_set_marker_of(key))
        if place is not None:
            found.setdefault(place[0], []).append((place[2], key))
    return found


def _is_whole(parts: Sequence[tuple[int, str]]) -> bool:
    return bool(parts) and len(parts) == parts[0][0]


def _publish_if_whole(job: Decoding, plan: GridPlan, log: RunLog) -> PatchSetManifest | None:
    parts = _parts_by_slide(find_published(job.store, job.name))
    if not all(_is_whole(parts.get(place, [])) for place in range(len(plan.slides))):
        return None
    keys = [key for place in range(len(plan.slides)) for _, key in parts[place]]
    colours = " and the colours of its hsv_filter" if plan.grid.hsv_filter else ""
    names = job.snapshot.rows.texts("slide", plan.slides)
    without = dict.fromkeys(names, f"no position on the grid has enough tissue{colours}") | plan.excluded
    return publish_manifest(job.store, job.name, keys, log, index_uri=job.snapshot.store.uri, without=without)


def _publish(
    job: Decoding, key: str, plan: GridPlan, requests: Sequence[PatchRequest], reader: GuardedReader,
    threads: ThreadPoolExecutor, log: RunLog,
) -> list[PatchRow]:  # fmt: skip
    outcomes = list(_outcomes(plan, requests, reader, threads))
    rows = [outcome for outcome in outcomes if isinstance(outcome, PatchRow)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, RejectedPatch)]
    marker = ShardMarker(
        snapshot_id=plan.snapshot.manifest.snapshot_id,
        patch_px=plan.patches.patch_px,
        mpp=plan.patches.mpp,
        encoding=plan.grid.encoding,
        format=plan.grid.format,
        rejected=_named(failures),
        notes=_notes(key, failures),
    )
    shard = publish_shard(job.store, key, rows, marker)
    log.event("grid-shard", shard=shard.key, num_patches=len(rows), failed=len(failures),
              filtered=outcomes.count(None))  # fmt: skip
    return rows


def _outcomes(
    plan: GridPlan, requests: Sequence[PatchRequest], reader: GuardedReader, threads: ThreadPoolExecutor
) -> Iterator[_Outcome]:
    """What became of each position, in order, a few tasks ahead; images are encoded in them."""
    ahead: deque[Future[list[_Outcome]]] = deque()
    try:
        for at in range(0, len(requests), _PATCHES_PER_TASK):
            ahead.append(threads.submit(_read, plan, reader, requests[at : at + _PATCHES_PER_TASK]))
            if len(ahead) > _TASKS_AHEAD_PER_THREAD * max(2, num_cores()):
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()
    finally:
        for task in ahead:
            task.cancel()


def _read(plan: GridPlan, reader: GuardedReader, requests: Sequence[PatchRequest]) -> list[_Outcome]:
    found: list[_Outcome] = []
    for request, pixels in zip(requests, reader.read(requests), strict=True):
        if isinstance(pixels, SlideError):
            found.append(rejected_patch(plan.snapshot, request, pixels))
        elif _is_filtered(plan.grid, pixels):
            found.append(None)
        else:
            row = encode_row(plan.snapshot, request, pixels, plan.patches.patch_px, plan.grid)
            found.append(row)
    return found


def _is_filtered(grid: GridConfig, pixels: Pixels) -> bool:
    wanted = grid.hsv_filter
    return wanted is not None and share_in_range(pixels, wanted) < wanted.min_share


def _named(failures: Sequence[RejectedPatch]) -> tuple[RejectedPatch, ...]:
    """The first few of each slide and reason."""
    counts: Counter[tuple[str, str]] = Counter()
    named: list[RejectedPatch] = []
    for failure in failures:
        counts[failure.slide, failure.reason] += 1
        if counts[failure.slide, failure.reason] <= _NAMED_UP_TO:
            named.append(failure)
    return tuple(named)


def _notes(key: str, failures: Sequence[RejectedPatch]) -> tuple[str, ...]:
    counts = Counter(failure.slide for failure in failures)
    name = key.rpartition("/")[2]
    return tuple(f"{name}: {count} positions of {slide} could not be read" for slide, count in counts.items())
