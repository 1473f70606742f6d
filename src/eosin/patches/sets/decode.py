"""Decoding of one worker's part of a patch set of a run or an index: held-out, sampled or a grid."""

import hashlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from eosin.config import RunConfig
from eosin.config.patches import HELD_OUT, EncodingConfig, GridConfig, SampledConfig
from eosin.errors import UserError
from eosin.index.snapshot import Snapshot
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.patches.decoding.quarantine import Quarantine
from eosin.patches.reading.reader import Pixels
from eosin.patches.request import PatchRequest
from eosin.patches.sampling.grid import GridPlan, plan_grid
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.sets.patchset import ShardMarker
from eosin.patches.sets.publish import (
    Throughput,
    encode_row,
    find_published,
    publish_manifest,
    publish_shard,
    read_shard_marker,
    rejected_patch,
    shard_suffix,
)
from eosin.patches.sets.set_spec import Decoding, pin_set
from eosin.patches.stream import GuardedReader, PatchStream, num_cores, open_reader, share_in_range
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
        ThreadPoolExecutor(max(2, num_cores()), thread_name_prefix="eosin-grid") as threads,
    ):
        for done, place in enumerate(own, 1):
            if not _is_whole(whole.get(place, [])):
                for key, requests in _shards(job.name, plan, place):
                    if key not in published:
                        speed.add(_publish(job, key, plan, requests, reader, threads, log), done - 1)
            speed.add((), done)
    speed.report()
    return _publish_if_whole(job, plan, log)


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


_BATCH = 64


def decode_held_out(job: Decoding, log: RunLog) -> PatchSetManifest | None:
    """Decode this worker's shard of the held-out set; whoever finishes the last publishes the manifest.

    Patch i of the set is the same whatever the number of shards; a shard holds a contiguous part of them, and
    memory is bounded by its encoded images. One that is published already is left alone. Returns None where
    others are not there yet. Raises `UserError` where no slide serves.
    """
    encoding, num_shards = job.config.patches.heldout, job.num_shards
    keys = shard_keys(HELD_OUT, num_shards, encoding)
    key, total = keys[job.shard], encoding.num_patches
    sampler, notes = held_out_sampler(job.snapshot, job.config, job.name)
    done = read_shard_marker(job.store, key)
    if done is not None and job.store.exists(key):
        log.event("shard-already-there", shard=job.shard, num_patches=done.shard.num_patches)
        return _publish_where_whole(job, sampler, keys, log)
    part = range(job.shard * total // num_shards, (job.shard + 1) * total // num_shards)
    speed = Throughput(log, len(part), "patches")
    publish_drawn(job, key, sampler, encoding, part, log, speed, split=HELD_OUT, notes=notes)
    speed.report()
    return _publish_where_whole(job, sampler, keys, log)


def publish_drawn(
    job: Decoding,
    key: str,
    sampler: Sampler,
    encoding: EncodingConfig,
    indices: Sequence[int],
    log: RunLog,
    speed: Throughput,
    *,
    split: str,
    notes: tuple[str, ...] = (),
) -> None:
    """Draw the samples `indices` of step 0, encode them and publish them as shard `key`."""
    rows: list[PatchRow] = []
    refused: list[tuple[PatchRequest, SlideError]] = []
    patch_px = sampler.config.patch_px
    wanted = ((0, indices[at : at + _BATCH]) for at in range(0, len(indices), _BATCH))

    def reject(request: PatchRequest, error: SlideError) -> None:
        refused.append((request, error))

    quarantine = Quarantine(job.store, job.snapshot)
    with PatchStream(sampler, log, on_reject=reject, quarantine=quarantine) as stream:
        for batch in stream.batches(wanted):
            drawn = zip(batch.requests, batch.pixels, strict=True)
            new = [encode_row(sampler.snapshot, *each, patch_px, encoding, split=split) for each in drawn]
            rows += new
            speed.add(new)
    refused.sort(key=lambda failure: (failure[0].index, failure[0].attempt))
    marker = ShardMarker(
        snapshot_id=job.snapshot.manifest.snapshot_id,
        patch_px=patch_px,
        mpp=sampler.config.shown_mpp,
        encoding=encoding.encoding,
        format=encoding.format,
        rejected=tuple(rejected_patch(sampler.snapshot, *failure) for failure in refused),
        notes=notes,
    )
    publish_shard(job.store, key, rows, marker)


def shard_keys(name: str, num_shards: int, encoding: EncodingConfig) -> list[str]:
    """Keys of the shards of a set that is drawn."""
    suffix = shard_suffix(encoding.format)
    return [RunLayout.patch_set_shard(name, shard, num_shards, suffix) for shard in range(num_shards)]


def held_out_sampler(snapshot: Snapshot, config: RunConfig, name: str) -> tuple[Sampler, tuple[str, ...]]:
    """The sampler of the held-out set, and what a reader of the set must know of it.

    Where no slide could be held out (all are one patient's, or those held out serve no patch) all
    slides are used, and a note says so. Raises `UserError` where none of those serves either.
    """
    patches = config.patches.model_copy(update={"patches_per_visit": 1})
    seed = seed_of(f"{config.seed}/{name}")
    try:
        return Sampler(snapshot, patches, seed=seed, split="heldout"), ()
    except UserError as error:
        reason = error.message.splitlines()[0]
    note = f"nothing is held out from training: {reason}; the patches come from the training slides"
    return Sampler(snapshot, patches, seed=seed, split="all"), (note,)


def seed_of(text: str) -> int:
    """A seed of 64 bits by hash."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


_DRAWN_AT_ONCE = 4096


def decode_sampled(job: Decoding, spec: SampledConfig, log: RunLog) -> PatchSetManifest | None:
    """Decode this worker's shards; whoever finishes the last one publishes the manifest (else None).

    Patches are sorted by the slide they are drawn from and cut into shards of `patches_per_shard`; a
    worker takes neighbouring shards, so that a slide is staged by one or two workers alone.
    """
    sampler = sampled_sampler(job, spec)
    pin_set(job)
    keys = shard_keys(job.name, -(-spec.num_patches // spec.patches_per_shard), spec)
    own = range(job.shard * len(keys) // job.num_shards, (job.shard + 1) * len(keys) // job.num_shards)
    published = find_published(job.store, job.name)
    todo = [number for number in own if keys[number] not in published]
    order = _by_slide(sampler, spec.num_patches) if todo else np.empty(0, np.int64)
    speed = Throughput(log, sum(len(_of_shard(order, number, spec)) for number in todo), "patches")
    split = "" if spec.split == "all" else spec.split
    for number in todo:
        indices = _of_shard(order, number, spec).tolist()
        publish_drawn(job, keys[number], sampler, spec, indices, log, speed, split=split)
    speed.report()
    return _publish_where_whole(job, sampler, keys, log)


def _publish_where_whole(
    job: Decoding, sampler: Sampler, keys: Sequence[str], log: RunLog
) -> PatchSetManifest | None:
    if not find_published(job.store, job.name) >= set(keys):
        return None
    index_uri = job.snapshot.store.uri
    return publish_manifest(job.store, job.name, keys, log, index_uri=index_uri, without=sampler.excluded)


def sampled_sampler(job: Decoding, spec: SampledConfig) -> Sampler:
    """The sampler of the set: the run's, with the set's own seed, slides and filter."""
    own = {"patches_per_visit": 1, "num_distinct": None, "num_distinct_per_slide": None,
           "hsv_filter": spec.hsv_filter}  # fmt: skip
    return Sampler(
        job.snapshot,
        job.config.patches.model_copy(update=own),
        seed=seed_of(f"{job.config.seed}/sampled/{spec.seed}"),
        split=spec.split,
        patterns=spec.slides,
    )


def _by_slide(sampler: Sampler, num_patches: int) -> npt.NDArray[np.int64]:
    """Sample indices in the order of the slides first drawn; ~20 µs and 8 bytes a patch."""
    slides = np.empty(num_patches, np.int64)
    for at in range(0, num_patches, _DRAWN_AT_ONCE):
        part = range(at, min(at + _DRAWN_AT_ONCE, num_patches))
        slides[part.start : part.stop] = [request.slide for request in sampler.draw_batch(0, part)]
    return np.argsort(slides, kind="stable")


def _of_shard(order: npt.NDArray[np.int64], number: int, spec: SampledConfig) -> npt.NDArray[np.int64]:
    return order[number * spec.patches_per_shard : (number + 1) * spec.patches_per_shard]


def sets_of_tasks(config: RunConfig) -> list[str]:
    """The held-out set, then those of the run's own sets that its evaluation reads."""
    named = {getattr(task, "patch_set", HELD_OUT) for task in config.evaluate.tasks}
    return [HELD_OUT, *sorted(named & set(config.patches.sets))]


def decode_set(job: Decoding, log: RunLog) -> PatchSetManifest | None:
    """Decode and publish a worker's part of a set; the manifest where every part is there, else None.

    Raises `UserError` as `pin_set` does, and where the set would be empty.
    """
    if job.spec is None:
        return decode_held_out(job, log)
    if isinstance(job.spec, GridConfig):
        return decode_grid(job, job.spec, log)
    return decode_sampled(job, job.spec, log)
