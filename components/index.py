"""Scan slides in shards, then merge the shards into one snapshot."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def index_shard(run: str, shard: int, num_shards: int) -> int:
    """Scan one shard of the slides; returns its number."""
    from eosin import steps

    steps.as_step(steps.index_shard, run, shard, num_shards)
    return shard


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def index_snapshot(
    run: str, shards: list, num_decode_shards: int, metrics: dsl.Output[dsl.Metrics]
) -> list:  # fmt: skip
    """Merge the shards and pin the snapshot to the run; returns the shards of decoding."""
    from eosin import steps

    manifest = steps.as_step(steps.snapshot, run, len(shards))
    metrics.log_metric("slides", manifest.num_slides)
    metrics.log_metric("slides used", manifest.num_ok)
    metrics.log_metric("tissue mm2", round(manifest.tissue_mm2, 3))
    return steps.shards(run, num_decode_shards)
