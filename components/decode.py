"""Decode a patch set: on a cluster the GPU pod with cuCIM."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def decode(run: str, shard: int, num_shards: int) -> int:
    """Decode one shard of the held-out patch set; the last one to finish publishes the manifest."""
    from eosin import steps

    steps.as_step(steps.decode, run, shard, num_shards)
    return shard
