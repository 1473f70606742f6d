"""Any exported teacher on the tasks of a run, without training.

`python -m eosin_pipelines.evaluate` compiles it to `evaluate.yaml`.
"""

from pathlib import Path

from eosin_components.tasks import choose, finish, plan
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
    name="eosin-evaluate",
    description="Judge an exported teacher, of this run or any other, on the tasks of a run.",
)
@with_shared_arguments
def evaluate(
    run: str,
    teacher: str,
    index_image: str,
    train_image: str,
    evaluate_image: str,
    slides: str = "",
    index: str = "",
    recipe: str = "",
    settings: list = [],  # noqa: B006  (kfp compiles the literal into the YAML)
    num_index_shards: int = 2,
    num_decode_shards: int = 1,
    num_evaluation_shards: int = 4,
    s3_secret: str = S3_SECRET,
    s3_config_map: str = S3_CONFIG_MAP,
    s3_ca_config_map: str = S3_CA_CONFIG_MAP,
    image_pull_secret: str = IMAGE_PULL_SECRET,
) -> None:
    """Index and decode where the run has not yet, evaluate, summarize.

    Args:
        run: URI of the run whose tasks are taken and that keeps the figures; begun here if it is new.
        teacher: URI of the folder of an export, RUN/teachers/NAME; or of a run: its newest teacher.
        slides: URI of the folder of slides of a new run; empty: the recipe's, or those of the index.
        index: URI of the index of a new run; empty: beside the folder of runs.
        recipe: Name of a recipe, or the URI of a configuration; empty: the run's own.
        settings: Overrides of the recipe, each "section.key=value".
        index_image: Image of plan, index and summarize, by digest; `make publish` names all three.
        train_image: Image of decode.
        evaluate_image: Image of choose and evaluate.
    """
    access = Access(s3_secret, s3_config_map, s3_ca_config_map, image_pull_secret)
    with dsl.ExitHandler(exit_task(finish(run=run), access, index_image), name="evaluation"):
        planned = plan(
            run=run,
            recipe=recipe,
            settings=settings,
            slides=slides,
            index=index,
            num_index_shards=num_index_shards,
            images=images_named(index_image, train_image, evaluate_image),
        ).set_container_image(index_image)
        shared = choose(run=run, teacher=teacher, num_evaluation_shards=num_evaluation_shards)
        shared.after(planned).set_container_image(evaluate_image)
        data = index_and_decode(run, planned, num_decode_shards, index_image, train_image, (shared,))
        judged, report = judge_and_report(run, shared, data.decoded, index_image, evaluate_image)
        prepare((planned, shared, data.scanned, data.snapshot, data.decoded, judged, report), access)


if __name__ == "__main__":
    print(write(evaluate, COMPILED))
