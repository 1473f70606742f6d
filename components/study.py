"""The components that a study adds: one run for each value, one report over all."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def plan_study(
    run: str, vary: str, values: list, recipe: str, settings: list, slides: str, index: str,
    num_index_shards: int, images: str, backend: str,
) -> list:  # fmt: skip
    """Publish the study and the configuration of each of its runs; returns the shards of indexing."""
    from eosin import steps

    steps.as_step(steps.require_images, run, images)
    source = steps.ConfigSource(recipe, settings, slides, index)
    steps.as_step(steps.plan_study, run, vary, values, source, backend)
    return steps.as_step(steps.index_shards, run, num_index_shards)


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def pin_variants(run: str, decode_shards: list) -> list:
    """Pin the study's snapshot to each of its runs; returns them."""
    from eosin import steps

    return [{"variant": uri} for uri in steps.as_step(steps.pin_variants, run)]


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def share_evaluations(run: str, trained: list, num_evaluation_shards: int) -> list:
    """Shards of evaluation over all runs of a study, once they are trained."""
    from eosin import steps

    print(f"{len(trained)} runs are trained")
    return steps.as_step(steps.evaluation_shards, run, num_evaluation_shards)


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def study_report(
    run: str, judged: list, report: dsl.Output[dsl.HTML], metrics: dsl.Output[dsl.Metrics]
) -> str:
    """Publish one report over all runs and show it as an artifact; returns its URI."""
    from eosin import steps

    print(f"evaluations that are ok, by shard: {', '.join(judged)}")
    result = steps.as_step(steps.study_report, run)
    for name, value in result.headline.items():
        metrics.log_metric(name, value)
    return steps.as_step(steps.copy_report, run, report.path)
