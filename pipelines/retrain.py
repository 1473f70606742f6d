"""New slides → index → enough of them? → training from the current model → evaluation → promotion.

`python -m eosin_pipelines.retrain` compiles it to `retrain.yaml`.
"""

from pathlib import Path

from eosin_components.tasks import (
    finish,
    judge_new_slides,
    name_run,
    plan_retrain,
    promote,
    say_unchanged,
    train,
)
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
from eosin_pipelines.graph import decode_held_out, index_slides, judge_and_report
from kfp import dsl

COMPILED = Path(__file__).with_suffix(".yaml")


@dsl.pipeline(
    name="eosin-retrain",
    description="Train the current model further on a grown collection; promote what has become better.",
)
@with_shared_arguments
def retrain(
    run: str,
    registry: str,
    name: str,
    index_image: str,
    train_image: str,
    evaluate_image: str,
    recipe: str = "",
    slides: str = "",
    index: str = "",
    settings: list = [],  # noqa: B006  (kfp compiles the literal into the YAML)
    min_new_slides: int = 1,
    judge_by: list = [],  # noqa: B006
    margin: float = 0.0,
    alpha: float = 0.05,
    backend: str = "jobset",
    num_index_shards: int = 2,
    num_decode_shards: int = 1,
    num_evaluation_shards: int = 4,
    s3_secret: str = S3_SECRET,
    s3_config_map: str = S3_CONFIG_MAP,
    s3_ca_config_map: str = S3_CA_CONFIG_MAP,
    image_pull_secret: str = IMAGE_PULL_SECRET,
) -> None:
    """Index what is new, stop where it is too little, else train, evaluate, summarize and promote.

    The task promote says promoted, refused or unchanged.

    Args:
        run: URI of the run, s3://bucket/runs/NAME; {date} becomes the day. The same URI again continues it.
        registry: URI of the model registry, s3://bucket/registry.
        name: Name of the model in it. Where there is none yet, the run becomes its first version.
        recipe: Name of a recipe, or the URI of a configuration; empty: that of the current model's run.
        slides: URI of the folder of slides; empty: the current model's.
        index: URI of the index; empty: the current model's.
        settings: Overrides of the recipe, each "section.key=value".
        min_new_slides: With fewer usable slides that the current model has not seen, nothing is trained.
        judge_by: Metrics that must all be won, each "TASK/METRIC"; none: balanced accuracy of every task.
        margin: By how much at least, in the unit of the metric.
        alpha: Level of the test of each metric; 1: no test.
        backend: Where training runs: "jobset" (a JobSet across node pools) or "local" (torchrun in the pod).
        index_image: Image of plan, index, summarize and promote, by digest; `make publish` names all three.
        train_image: Image of decode and train.
        evaluate_image: Image of evaluate.
    """
    access = Access(s3_secret, s3_config_map, s3_ca_config_map, image_pull_secret)
    with dsl.ExitHandler(exit_task(finish(run=run), access, index_image), name="retraining"):
        named = name_run(run=run).set_container_image(index_image)
        uri = named.outputs["Output"]
        planned = plan_retrain(
            run=uri, registry=registry, name=name, recipe=recipe, settings=settings, slides=slides,
            index=index, num_index_shards=num_index_shards,
            images=images_named(index_image, train_image, evaluate_image), backend=backend,
        ).set_container_image(index_image)  # fmt: skip
        scanned, snapshot = index_slides(uri, planned, num_decode_shards, index_image)
        gate = judge_new_slides(
            run=uri, min_new_slides=min_new_slides, decode_shards=snapshot.outputs["Output"]
        ).set_container_image(index_image)
        with dsl.If(gate.outputs["Output"] == "train", name="enough-is-new"):
            decoded = decode_held_out(snapshot, train_image)
            trained = train(run=uri, backend=backend, num_evaluation_shards=num_evaluation_shards)
            trained.set_container_image(train_image)
            judged, report = judge_and_report(uri, trained, decoded, index_image, evaluate_image)
            promoted = promote(
                run=uri, registry=registry, name=name, judge_by=judge_by, margin=margin, alpha=alpha,
                report=report.outputs["Output"],
            ).set_container_image(index_image)  # fmt: skip
        with dsl.Else(name="too-little-is-new"):
            unchanged = say_unchanged(name=name).set_container_image(index_image)
        prepare(
            (named, planned, scanned, snapshot, gate, decoded, judged, report, promoted, unchanged),
            access,
            (trained,),
        )


if __name__ == "__main__":
    print(write(retrain, COMPILED))
