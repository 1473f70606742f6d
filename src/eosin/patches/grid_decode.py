"""`eosin decode --name NAME`: a grid of patches, published shard by shard as a patch set."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from eosin.config.patches import GridConfig
from eosin.observability import RunLog
from eosin.patches.decode import encode_row, is_published, open_decoding, publish_shard, rejected_patch
from eosin.patches.grid import GridPlan, plan_grid
from eosin.patches.hsv_filter import share_in_range
from eosin.patches.patchset import ShardMarker
from eosin.patches.reader import PatchReader, Pixels
from eosin.patches.request import PatchRequest
from eosin.patches.stream import num_cores, open_reader
from eosin.records import PatchSetShard, RejectedPatch
from eosin.records.patchset_shard import PatchRow, encode_shard
from eosin.slides.errors import SlideError
from eosin.storage import Store

_PATCHES_PER_TASK = 16
_TASKS_AHEAD_PER_THREAD = 2
# A slide that is gone fails all its positions: so many of each slide and reason are named in a shard.
_NAMED_UP_TO = 8

# What became of a position: its row, why it could not be read, or None where its colours rejected it.
_Outcome = PatchRow | RejectedPatch | None


def decode_grid(run_uri: str, *, name: str, shard: int, num_shards: int, log: RunLog) -> int:
    """Decode and publish the shards of the grid `name` that fall to worker `shard` of `num_shards`.

    The shards are cut by `patches_per_shard` whatever the number of workers; worker i makes every
    `num_shards`-th from the i-th on. One that is published already is left alone. Returns how many there
    are in all. Raises `UserError` for a set the configuration does not have, or a grid without a patch.
    """
    store, config, snapshot = open_decoding(run_uri, name, shard, num_shards)
    grid = config.patches.sets[name]
    plan = plan_grid(snapshot, config.patches, grid)
    log.event("grid-planned", name=name, num_patches=plan.num_patches, num_shards=plan.num_shards,
              slides=len(plan.slides))  # fmt: skip
    own = range(shard, plan.num_shards, num_shards)
    reader = open_reader(snapshot, plan.patches, share_tiles=True)
    with ThreadPoolExecutor(max(2, num_cores()), thread_name_prefix="eosin-grid") as threads:
        for done, number in enumerate(own, 1):
            if not is_published(store, name, number, plan.num_shards):
                _publish(store, name, number, plan, _outcomes(plan, number, reader, threads), log)
            log.progress(done, len(own), "shards")
    return plan.num_shards


def _publish(
    store: Store, name: str, number: int, plan: GridPlan, outcomes: Iterator[_Outcome], log: RunLog
) -> PatchSetShard:
    rows: list[PatchRow] = []
    failures: list[RejectedPatch] = []
    num_filtered = 0
    for outcome in outcomes:
        if isinstance(outcome, PatchRow):
            rows.append(outcome)
        elif outcome is None:
            num_filtered += 1
        else:
            failures.append(outcome)
    shard = publish_shard(
        store, name, number, plan.num_shards, encode_shard(rows),
        ShardMarker(
            shard=PatchSetShard(key="", num_patches=len(rows), sha256=""),
            snapshot_id=plan.snapshot.manifest.snapshot_id,
            patch_px=plan.patches.patch_px,
            mpp=plan.patches.mpp,
            encoding=plan.grid.encoding,
            slides=tuple(sorted({row.slide for row in rows})),
            rejected=_named(failures),
            notes=_notes(number, failures),
        ),
    )  # fmt: skip
    log.event("grid-shard", shard=number, num_patches=len(rows), failed=len(failures), filtered=num_filtered)
    return shard


def _outcomes(
    plan: GridPlan, number: int, reader: PatchReader, threads: ThreadPoolExecutor
) -> Iterator[_Outcome]:
    """What became of each position of a shard, in order, a few tasks ahead; images are encoded in them."""
    requests = plan.shard(number)
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


def _read(plan: GridPlan, reader: PatchReader, requests: Sequence[PatchRequest]) -> list[_Outcome]:
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


def _notes(number: int, failures: Sequence[RejectedPatch]) -> tuple[str, ...]:
    counts = Counter(failure.slide for failure in failures)
    return tuple(
        f"shard {number}: {count} positions of {slide} could not be read" for slide, count in counts.items()
    )
