"""One submission, one key varied: index → a run for each value → evaluation → one report.

`python -m eosin_pipelines.scaling_study` compiles it to `scaling_study.yaml`.
"""

from pathlib import Path

from eosin_components.tasks import finish, pin_variants, plan_study, share_evaluations, study_report, train
from eosin_pipelines.defaults import (
    IMAGE_PULL_SECRET,
    S3_CA_CONFIG_MAP,
    S3_CONFIG_MAP,
    S3_SECRET,
    Access,
    exit_task,
    images_named,
    prepare,
    with_shared_arguments,
    write,
)
from eosin_pipelines.graph import index_and_decode, judge
from kfp import dsl

COMPILED = Path(__file__).with_suffix(".yaml")
# kfp takes no parameter here. More trainings at once share the same GPUs, and each holds some while it
# waits for the rest.
_TRAININGS_AT_ONCE = 2


@dsl.pipeline(
    name="eosin-scaling-study",
    description="Train once for each value of one key, judge all on the same data, compare in one report.",
)
@with_shared_arguments
def scaling_study(
    run: str,
    index_image: str,
    train_image: str,
    evaluate_image: str,
    vary: str = "slides",
    values: list = [],  # noqa: B006  (kfp compiles the literal into the YAML)
    recipe: str = "vits16-dino",
    slides: str = "",
    index: str = "",
    settings: list = [],  # noqa: B006
    backend: str = "jobset",
    num_index_shards: int = 2,
    num_decode_shards: int = 1,
    num_evaluation_shards: int = 4,
    s3_secret: str = S3_SECRET,
    s3_config_map: str = S3_CONFIG_MAP,
    s3_ca_config_map: str = S3_CA_CONFIG_MAP,
    image_pull_secret: str = IMAGE_PULL_SECRET,
) -> None:
    """Index and decode once, train each variant, evaluate all, write one report.

    Args:
        run: URI of the study, s3://bucket/studies/NAME. The same URI again continues it.
        vary: slides, patches, init, magnifications or method; or any key, "section.key".
        values: Its values, "all" for no limit; empty: those usual for the first five.
        recipe: Name of a recipe, or the URI of a configuration.
        slides: URI of the folder of slides; empty: the recipe's, or those of the index.
        index: URI of the index; empty: one a folder of slides, beside the folder of the study.
        settings: Overrides of the recipe for every run, each "section.key=value".
        backend: Where training runs: "jobset" (a JobSet across node pools) or "local" (torchrun in the pod).
        index_image: Image of plan, index and the report, by digest; `make publish` names all three.
        train_image: Image of decode and train.
        evaluate_image: Image of evaluate.
    """
    access = Access(s3_secret, s3_config_map, s3_ca_config_map, image_pull_secret)
    with dsl.ExitHandler(exit_task(finish(run=run), access, index_image), name="study"):
        planned = plan_study(
            run=run, vary=vary, values=values, recipe=recipe, settings=settings, slides=slides, index=index,
            num_index_shards=num_index_shards,
            images=images_named(index_image, train_image, evaluate_image), backend=backend,
        ).set_container_image(index_image)  # fmt: skip
        data = index_and_decode(run, planned, num_decode_shards, index_image, train_image)
        pinned = pin_variants(run=run, decode_shards=data.snapshot.outputs["Output"])
        pinned.set_container_image(index_image)
        with dsl.ParallelFor(
            pinned.outputs["Output"], name="variants", parallelism=_TRAININGS_AT_ONCE
        ) as each:
            trained = train(run=each.variant, backend=backend, num_evaluation_shards=1)
            trained.set_container_image(train_image)
        shared = share_evaluations(
            run=run, trained=dsl.Collected(trained.outputs["Output"]),
            num_evaluation_shards=num_evaluation_shards,
        ).set_container_image(index_image)  # fmt: skip
        judged = judge(shared, data.decoded, evaluate_image)
        report = study_report(run=run, judged=dsl.Collected(judged.outputs["Output"]))
        report.set_container_image(index_image)
        tasks = (planned, data.scanned, data.snapshot, data.decoded, pinned, shared, judged, report)
        prepare(tasks, access, (trained,))


if __name__ == "__main__":
    print(write(scaling_study, COMPILED))
