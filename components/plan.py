"""Plan of a run: its configuration, published, and how indexing is shared out."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def plan(
    run: str, recipe: str, settings: list, slides: str, index: str, num_index_shards: int, images: str,
    backend: str = "",
) -> list:  # fmt: skip
    """Publish the run's configuration; returns the shards of indexing."""
    from eosin import steps

    steps.as_step(steps.require_images, run, images)
    steps.as_step(steps.plan, run, steps.ConfigSource(recipe, settings, slides, index), backend)
    return steps.as_step(steps.index_shards, run, num_index_shards)
