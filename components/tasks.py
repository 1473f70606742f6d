"""Components of the Kubeflow pipelines; each calls one function of the package, or a few in a row."""

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


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def decode(run: str, shard: int, num_shards: int) -> int:
    """Decode one shard of the held-out patch set; the last one to finish publishes the manifest."""
    from eosin import steps

    steps.as_step(steps.decode, run, shard, num_shards)
    return shard


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def train(run: str, backend: str, num_evaluation_shards: int, metrics: dsl.Output[dsl.Metrics]) -> list:
    """Train to the end; returns the shards of evaluation."""
    from eosin import steps

    done = steps.as_step(steps.train, run, backend)
    metrics.log_metric("steps", done.num_steps)
    if done.final_loss is not None:
        metrics.log_metric("final loss", done.final_loss)
    return steps.as_step(steps.evaluation_shards, run, num_evaluation_shards)


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def choose(run: str, teacher: str, num_evaluation_shards: int) -> list:
    """Shards of judging a teacher from anywhere on the tasks of a run."""
    from eosin import steps

    return steps.as_step(steps.evaluation_shards, run, num_evaluation_shards, teacher)


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def evaluate(
    run: str, shard: int, num_shards: int, teacher: str, decoded: list, metrics: dsl.Output[dsl.Metrics]
) -> str:
    """Publish the metric records of this shard's pairs of model and task; returns how many are ok."""
    from eosin import steps

    print(f"{len(decoded)} shards of held-out patches are ready")
    records = steps.as_step(steps.evaluate_shard, run, shard, num_shards, teacher)
    for record in records:
        for name, value in record.metrics.items():
            metrics.log_metric(f"{record.model} {record.task} {name}", value.mean)
    return f"{sum(record.status == 'ok' for record in records)} of {len(records)}"


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def summarize(run: str, judged: list, report: dsl.Output[dsl.HTML], metrics: dsl.Output[dsl.Metrics]) -> str:
    """Publish the report and show it, and its headline figures, as artifacts; returns its URI."""
    from eosin import steps

    print(f"evaluations that are ok, by shard: {', '.join(judged)}")
    result = steps.as_step(steps.summarize, run)
    for name, value in result.headline.items():
        metrics.log_metric(name, value)
    return steps.as_step(steps.copy_report, run, report.path)


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def promote(
    run: str, registry: str, name: str, judge_by: list, margin: float, alpha: float, report: str,
    metrics: dsl.Output[dsl.Metrics], verdict: dsl.Output[dsl.Markdown],
) -> str:  # fmt: skip
    """Promote the newest teacher of a run whose report is there; returns promoted, refused or unchanged."""
    from pathlib import Path

    from eosin import steps

    print(f"judged in {report}")
    result = steps.as_step(steps.promote, registry, name, run, metrics=judge_by, margin=margin, alpha=alpha)
    metrics.log_metric("current version", result.version)
    Path(verdict.path).write_text(f"```\n{result}\n```\n")
    return result.status


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def plan_tiles(run: str, image: str, num_shards: int, index: str, patches: str) -> list:
    """Shards of decoding or embedding without a run, where the index or the patch set is there."""
    from eosin import steps

    steps.as_step(steps.require_images, run, f"all={image}")
    return steps.as_step(steps.plan_tiles, run, num_shards, index, patches)


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def decode_tiles(
    run: str, shard: int, num_shards: int, index: str, name: str, settings: list, slide_patterns: list,
    metrics: dsl.Output[dsl.Metrics],
) -> int:  # fmt: skip
    """Decode one shard of a patch set; the last one to finish publishes the manifest."""
    from eosin import steps

    made = steps.as_step(steps.decode_tiles, run, shard, num_shards, index, name, settings, slide_patterns)
    for name, value in made.items():
        metrics.log_metric(name, value)
    return shard


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def embed_tiles(
    run: str, shard: int, num_shards: int, model: str, index: str, patches: str, settings: list,
    slide_patterns: list, format: str, read_out: str, metrics: dsl.Output[dsl.Metrics],
) -> int:  # fmt: skip
    """Embed one shard of the slides; the last one to finish publishes the manifest."""
    from eosin import steps

    made = steps.as_step(
        steps.embed_tiles, run, shard, num_shards, model, index, patches, settings, slide_patterns, format,
        read_out,
    )  # fmt: skip
    for name, value in made.items():
        metrics.log_metric(name, value)
    return shard


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def finish(run: str) -> None:
    """Runs last, after success, failure and Kubeflow's Terminate alike: see `steps.finish`."""
    from eosin import steps

    steps.as_step(steps.finish, run)
