"""The held-out patch set of a run (`eosin decode`), as immutable shards with a manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from eosin.config import RunConfig
from eosin.config.patches import HELD_OUT, EncodingConfig
from eosin.errors import UserError
from eosin.index.snapshot import Snapshot
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.patches.decoding.quarantine import Quarantine
from eosin.patches.request import PatchBatch, PatchRequest
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.sets.encode import encode_row, rejected_patch
from eosin.patches.sets.patchset import ShardMarker
from eosin.patches.sets.publish import publish_shard, read_shard_marker, shard_suffix
from eosin.patches.sets.set_spec import Decoding
from eosin.patches.sets.throughput import Throughput
from eosin.patches.stream import PatchStream
from eosin.records import PatchSetShard, RejectedPatch
from eosin.records.patchset_shard import PatchRow
from eosin.slides.errors import SlideError

_BATCH = 64


def decode_held_out(job: Decoding, log: RunLog) -> PatchSetShard:
    """Draw, decode and publish this worker's shard of the held-out set; one already published is left alone.

    Patch i of the set is the same whatever the number of shards; a shard holds a contiguous part of them, and
    memory is bounded by its encoded images. Raises `UserError` where no slide serves.
    """
    config, encoding = job.config, job.config.patches.heldout
    key = held_out_shards(job.config, job.num_shards)[job.shard]
    done = read_shard_marker(job.store, key)
    if done is not None and job.store.exists(key):
        log.event("shard-already-there", shard=job.shard, num_patches=done.shard.num_patches)
        return done.shard
    sampler, notes = held_out_sampler(job.snapshot, config, job.name)
    part = _part(encoding.num_patches, job.shard, job.num_shards)
    speed = Throughput(log, len(part), "patches")
    published = publish_drawn(job, key, sampler, encoding, part, log, speed, split=HELD_OUT, notes=notes)
    speed.report()
    return published


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
) -> PatchSetShard:
    """Draw the samples `indices` of step 0, encode them and publish them as shard `key`."""
    quarantine = Quarantine(job.store, job.snapshot)
    rows, rejected = draw_rows(sampler, quarantine, encoding, indices, log, speed, split=split)
    marker = ShardMarker(
        snapshot_id=job.snapshot.manifest.snapshot_id,
        patch_px=sampler.config.patch_px,
        mpp=sampler.config.shown_mpp,
        encoding=encoding.encoding,
        format=encoding.format,
        rejected=rejected,
        notes=notes,
    )
    return publish_shard(job.store, key, rows, marker)


def held_out_shards(config: RunConfig, num_shards: int) -> list[str]:
    """Keys of the held-out set's shards."""
    suffix = shard_suffix(config.patches.heldout.format)
    return [RunLayout.patch_set_shard(HELD_OUT, shard, num_shards, suffix) for shard in range(num_shards)]


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


def draw_rows(
    sampler: Sampler,
    quarantine: Quarantine,
    encoding: EncodingConfig,
    indices: Sequence[int],
    log: RunLog,
    speed: Throughput,
    *,
    split: str = "",
) -> tuple[list[PatchRow], tuple[RejectedPatch, ...]]:
    """Rows of the samples `indices` of step 0, and what was replaced among them, in order."""
    rows: list[PatchRow] = []
    refused: list[tuple[PatchRequest, SlideError]] = []
    wanted = ((0, indices[at : at + _BATCH]) for at in range(0, len(indices), _BATCH))

    def reject(request: PatchRequest, error: SlideError) -> None:
        refused.append((request, error))

    with PatchStream(sampler, log, on_reject=reject, quarantine=quarantine) as stream:
        for batch in stream.batches(wanted):
            new = list(_rows_of(sampler, encoding, batch, split))
            rows += new
            speed.add(new)
    refused.sort(key=lambda failure: (failure[0].index, failure[0].attempt))
    return rows, tuple(rejected_patch(sampler.snapshot, *failure) for failure in refused)


def _rows_of(sampler: Sampler, encoding: EncodingConfig, batch: PatchBatch, split: str) -> Iterator[PatchRow]:
    side_px = sampler.config.patch_px
    for pixels, request in zip(batch.pixels, batch.requests, strict=True):
        yield encode_row(sampler.snapshot, request, pixels, side_px, encoding, split=split)


def _part(total: int, shard: int, num_shards: int) -> range:
    """The patches of one shard: contiguous, and as many as any other's to within one."""
    return range(shard * total // num_shards, (shard + 1) * total // num_shards)
