"""Resolve the configuration, publish it with the run, and say how the work is shared out."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def plan(
    run: str, recipe: str, settings: list, slides: str, index: str, num_index_shards: int,
    num_decode_shards: int, index_shards: dsl.OutputPath(list), decode_shards: dsl.OutputPath(list),
) -> None:  # fmt: skip
    """Publish the run's configuration; the outputs list the shards of indexing and of decoding."""
    import json
    from pathlib import Path

    from eosin import steps

    steps.as_step(steps.plan, run, recipe=recipe, settings=settings, slides=slides, index=index)
    for path, count in ((index_shards, num_index_shards), (decode_shards, num_decode_shards)):
        Path(path).write_text(json.dumps([{"shard": shard, "num_shards": count} for shard in range(count)]))
