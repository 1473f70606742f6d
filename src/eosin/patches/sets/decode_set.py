"""One worker's part of any patch set of a run."""

from __future__ import annotations

from collections.abc import Sequence

from eosin.config import RunConfig
from eosin.config.patches import HELD_OUT, GridConfig
from eosin.observability import RunLog
from eosin.patches.sets.decode import decode_held_out, held_out_shards
from eosin.patches.sets.grid_decode import decode_grid
from eosin.patches.sets.publish import find_published, publish_manifest
from eosin.patches.sets.sampled_decode import decode_sampled
from eosin.patches.sets.set_spec import Decoding, open_decoding
from eosin.records import PatchSetManifest


def sets_of_tasks(config: RunConfig) -> list[str]:
    """The held-out set, then those of the run's own sets that its evaluation reads."""
    named = {getattr(task, "patch_set", HELD_OUT) for task in config.evaluate.tasks}
    return [HELD_OUT, *sorted(named & set(config.patches.sets))]


def decode_set(
    run_uri: str,
    *,
    name: str,
    shard: int,
    num_shards: int,
    log: RunLog,
    settings: Sequence[str] = (),
    slides: Sequence[str] = (),
) -> PatchSetManifest | None:
    """Decode and publish part `shard` of `num_shards` of the set `name`.

    Returns the manifest where every part is there, else None. Raises `UserError` as `open_decoding` and
    `pin_set` do, and where the set would be empty.
    """
    return decode_declared_part(open_decoding(run_uri, name, shard, num_shards, settings, slides), log)


def decode_declared_part(job: Decoding, log: RunLog) -> PatchSetManifest | None:
    """As `decode_set`, for a worker's part that is open already."""
    if job.spec is None:
        return _held_out(job, log)
    if isinstance(job.spec, GridConfig):
        return decode_grid(job, job.spec, log)
    return decode_sampled(job, job.spec, log)


def _held_out(job: Decoding, log: RunLog) -> PatchSetManifest | None:
    decode_held_out(job, log)
    keys = held_out_shards(job.config, job.num_shards)
    if find_published(job.store, job.name) >= set(keys):
        return publish_manifest(job.store, job.name, keys, log)
    return None
