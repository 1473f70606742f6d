"""Plan a retraining from the registry's current model, and stop where too little is new."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def name_run(run: str) -> str:
    """The run's URI with the day in the place of {date}: the same for every later task and its retries."""
    from eosin.runs import dated

    return dated(run)


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def plan_retrain(
    run: str, registry: str, name: str, recipe: str, settings: list, slides: str, index: str,
    num_index_shards: int, images: str, backend: str,
) -> list:  # fmt: skip
    """Publish the run's configuration, begun with the current model; returns the shards of indexing."""
    from eosin import steps

    steps.as_step(steps.require_images, run, images)
    source = steps.ConfigSource(recipe, settings, slides, index)
    steps.as_step(steps.plan_retrain, run, registry, name, source, backend)
    return steps.as_step(steps.index_shards, run, num_index_shards)


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def judge_new_slides(
    run: str, min_new_slides: int, decode_shards: list, metrics: dsl.Output[dsl.Metrics]
) -> str:
    """Say "train" where the pinned snapshot has new slides enough, else "stop"."""
    from eosin import steps

    gate = steps.as_step(steps.judge_new_slides, run, min_new_slides)
    metrics.log_metric("new slides", gate.num_new_slides)
    return "train" if gate.go else "stop"


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def say_unchanged(name: str) -> str:
    """What the pipeline returns where nothing was trained."""
    print(f"{name} stays as it is")
    return "unchanged"
