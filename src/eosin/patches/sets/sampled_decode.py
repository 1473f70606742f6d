"""Decoding of a sampled set (`eosin decode --name`): patches drawn as training draws them, slide by slide."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eosin.config.patches import SampledConfig
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.sets.decode import publish_drawn, seed_of
from eosin.patches.sets.publish import find_published, publish_manifest, shard_suffix
from eosin.patches.sets.set_spec import Decoding, pin_set
from eosin.patches.sets.throughput import Throughput
from eosin.records import PatchSetManifest

_DRAWN_AT_ONCE = 4096


def decode_sampled(job: Decoding, spec: SampledConfig, log: RunLog) -> PatchSetManifest | None:
    """Decode this worker's shards; whoever finishes the last one publishes the manifest (else None).

    Patches are sorted by the slide they are drawn from and cut into shards of `patches_per_shard`; a
    worker takes neighbouring shards, so that a slide is staged by one or two workers alone.
    """
    sampler = sampled_sampler(job, spec)
    pin_set(job)
    keys = _shard_keys(job.name, spec)
    own = range(job.shard * len(keys) // job.num_shards, (job.shard + 1) * len(keys) // job.num_shards)
    published = find_published(job.store, job.name)
    todo = [number for number in own if keys[number] not in published]
    order = _by_slide(sampler, spec.num_patches) if todo else np.empty(0, np.int64)
    speed = Throughput(log, sum(len(_part(order, number, spec)) for number in todo), "patches")
    split = "" if spec.split == "all" else spec.split
    for number in todo:
        indices = _part(order, number, spec).tolist()
        publish_drawn(job, keys[number], sampler, spec, indices, log, speed, split=split)
    speed.report()
    if find_published(job.store, job.name) >= set(keys):
        return publish_manifest(job.store, job.name, keys, log)
    return None


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


def _shard_keys(name: str, spec: SampledConfig) -> list[str]:
    num_shards = -(-spec.num_patches // spec.patches_per_shard)
    suffix = shard_suffix(spec.format)
    return [RunLayout.patch_set_shard(name, number, num_shards, suffix) for number in range(num_shards)]


def _by_slide(sampler: Sampler, num_patches: int) -> npt.NDArray[np.int64]:
    """Sample indices in the order of the slides first drawn; ~20 µs and 8 bytes a patch."""
    slides = np.empty(num_patches, np.int64)
    for at in range(0, num_patches, _DRAWN_AT_ONCE):
        part = range(at, min(at + _DRAWN_AT_ONCE, num_patches))
        slides[part.start : part.stop] = [request.slide for request in sampler.draw_batch(0, part)]
    return np.argsort(slides, kind="stable")


def _part(order: npt.NDArray[np.int64], number: int, spec: SampledConfig) -> npt.NDArray[np.int64]:
    return order[number * spec.patches_per_shard : (number + 1) * spec.patches_per_shard]
