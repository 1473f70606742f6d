"""Any exported teacher on the tasks of a run, without training.

`python -m eosin_pipelines.evaluate` compiles it to `evaluate.yaml`.
"""

from pathlib import Path

from eosin_components.choose import choose
from eosin_components.decode import decode
from eosin_components.evaluate import evaluate as judge
from eosin_components.index import index_shard, index_snapshot
from eosin_components.plan import plan
from eosin_components.summarize import summarize
from eosin_pipelines.defaults import EVALUATE_IMAGE, INDEX_IMAGE, TRAIN_IMAGE, prepare
from kfp import compiler, dsl

COMPILED = Path(__file__).with_suffix(".yaml")


@dsl.pipeline(
    name="eosin-evaluate",
    description="Judge an exported teacher, of this run or any other, on the tasks of a run.",
)
def evaluate(
    run: str,
    teacher: str,
    slides: str = "",
    index: str = "",
    recipe: str = "",
    settings: list = [],  # noqa: B006  (kfp compiles the literal into the YAML)
    num_index_shards: int = 2,
    num_decode_shards: int = 1,
    index_image: str = INDEX_IMAGE,
    train_image: str = TRAIN_IMAGE,
    evaluate_image: str = EVALUATE_IMAGE,
    s3_secret: str = "eosin-s3",
) -> str:
    """Index and decode where the run has not yet, evaluate, summarize.

    Args:
        run: URI of the run whose tasks are taken and that keeps the figures; begun here if it is new.
        teacher: URI of the folder of an export, RUN/teachers/NAME; or of a run: its newest teacher.
        slides: URI of the folder of slides of a new run; empty: the recipe's, or those of the index.
        index: URI of the index of a new run; empty: beside the folder of runs.
        recipe: Name of a recipe, or the URI of a configuration; empty: the run's own.
        settings: Overrides of the recipe, each "section.key=value".
        num_index_shards: How many pods scan slides at once.
        num_decode_shards: How many pods decode held-out patches at once.
        index_image: Image of plan, index and summarize, by tag or digest.
        train_image: Image of decode.
        evaluate_image: Image of choose and evaluate.
        s3_secret: Secret with AWS_ACCESS_KEY_ID and the like for every pod; pods start without it too.
    """
    planned = plan(
        run=run,
        recipe=recipe,
        settings=settings,
        slides=slides,
        index=index,
        num_index_shards=num_index_shards,
    ).set_container_image(index_image)
    pairs = choose(run=run, teacher=teacher).after(planned).set_container_image(evaluate_image)
    with dsl.ParallelFor(planned.outputs["Output"], name="index-shards") as part:
        scanned = index_shard(run=run, shard=part.shard, num_shards=part.num_shards).after(pairs)
        scanned.set_container_image(index_image)
    snapshot = index_snapshot(
        run=run, shards=dsl.Collected(scanned.output), num_decode_shards=num_decode_shards
    ).set_container_image(index_image)
    with dsl.ParallelFor(snapshot.outputs["Output"], name="decode-shards") as part:
        decoded = decode(run=run, shard=part.shard, num_shards=part.num_shards)
        decoded.set_container_image(train_image)
    with dsl.ParallelFor(pairs.outputs["Output"], name="model-x-task") as pair:
        judged = judge(
            run=run, model=pair.model, task=pair.judged_on, decoded=dsl.Collected(decoded.output)
        ).set_container_image(evaluate_image)
    report = summarize(run=run, statuses=dsl.Collected(judged.outputs["Output"]))
    report.set_container_image(index_image)
    prepare((planned, pairs, scanned, snapshot, decoded, judged, report), s3_secret)
    return report.outputs["Output"]


def compile_to(path: Path = COMPILED) -> Path:
    """Write the pipeline's YAML to `path`."""
    compiler.Compiler().compile(evaluate, str(path))
    return path


if __name__ == "__main__":
    print(compile_to())
