"""Slides in S3 → index → held-out patches → training → evaluation → report.

`python -m eosin_pipelines.pretrain` compiles it to `pretrain.yaml`, the file that runs everywhere.
"""

from pathlib import Path

from eosin_components.tasks import finish, plan, train
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
from eosin_pipelines.graph import index_and_decode, judge_and_report
from kfp import dsl

COMPILED = Path(__file__).with_suffix(".yaml")


@dsl.pipeline(
    name="eosin-pretrain",
    description="Pretrain a pathology foundation model on the whole-slide images of one folder.",
)
@with_shared_arguments
def pretrain(
    run: str,
    index_image: str,
    train_image: str,
    evaluate_image: str,
    slides: str = "",
    index: str = "",
    recipe: str = "vits16-dinov2",
    settings: list = [],  # noqa: B006  (kfp compiles the literal into the YAML)
    backend: str = "jobset",
    num_index_shards: int = 2,
    num_decode_shards: int = 1,
    num_evaluation_shards: int = 4,
    s3_secret: str = S3_SECRET,
    s3_config_map: str = S3_CONFIG_MAP,
    s3_ca_config_map: str = S3_CA_CONFIG_MAP,
    image_pull_secret: str = IMAGE_PULL_SECRET,
) -> None:
    """Index, decode, train, evaluate and summarize.

    Args:
        run: URI of the run, s3://bucket/runs/NAME. The same URI again continues it.
        slides: URI of the folder of slides; empty: the recipe's, or those of the index.
        index: URI of the index; empty: one a folder of slides, indexes/NAME beside the folder of runs.
        recipe: Name of a recipe, or the URI of a configuration.
        settings: Overrides of the recipe, each "section.key=value".
        backend: Where training runs: "jobset" (a JobSet across node pools) or "local" (torchrun in the pod).
        index_image: Image of plan, index and summarize, by digest; `make publish` names all three.
        train_image: Image of decode and train.
        evaluate_image: Image of evaluate.
    """
    access = Access(s3_secret, s3_config_map, s3_ca_config_map, image_pull_secret)
    with dsl.ExitHandler(exit_task(finish(run=run), access, index_image), name="pretraining"):
        planned = plan(
            run=run,
            recipe=recipe,
            settings=settings,
            slides=slides,
            index=index,
            num_index_shards=num_index_shards,
            images=images_named(index_image, train_image, evaluate_image),
            backend=backend,
        ).set_container_image(index_image)
        data = index_and_decode(run, planned, num_decode_shards, index_image, train_image)
        trained = train(run=run, backend=backend, num_evaluation_shards=num_evaluation_shards)
        trained.after(data.snapshot).set_container_image(train_image)
        judged, report = judge_and_report(run, trained, data.decoded, index_image, evaluate_image)
        prepare((planned, data.scanned, data.snapshot, data.decoded, judged, report), access, (trained,))


if __name__ == "__main__":
    print(write(pretrain, COMPILED))
