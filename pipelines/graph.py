"""The parts that pipelines share: slides to held-out patches, and teachers to a report."""

from dataclasses import dataclass

from eosin_components.tasks import decode, evaluate, index_shard, index_snapshot, summarize
from kfp import dsl


@dataclass(frozen=True)
class Data:
    """The tasks that bring slides to an index and a held-out patch set."""

    scanned: dsl.PipelineTask
    snapshot: dsl.PipelineTask
    decoded: dsl.PipelineTask


def index_slides(
    run: object, planned: dsl.PipelineTask, num_decode_shards: object, index_image: object,
    after: tuple[dsl.PipelineTask, ...] = (),
) -> tuple[dsl.PipelineTask, dsl.PipelineTask]:  # fmt: skip
    """Scan in shards and merge; `after`: what must have succeeded before a slide is read."""
    # kfp.local loops only over the output of a task that has the name "Output", and takes every other
    # task's output that enters a loop for the loop's item: so the item brings the run along.
    with dsl.ParallelFor(planned.outputs["Output"], name="index-shards") as part:
        scanned = index_shard(run=part.run_uri, shard=part.shard, num_shards=part.num_shards).after(*after)
        scanned.set_container_image(index_image)
    snapshot = index_snapshot(
        run=run, shards=dsl.Collected(scanned.output), num_decode_shards=num_decode_shards
    ).set_container_image(index_image)
    return scanned, snapshot


def decode_held_out(snapshot: dsl.PipelineTask, train_image: object) -> dsl.PipelineTask:
    """Decode the held-out patches in the shards that the snapshot's task names."""
    with dsl.ParallelFor(snapshot.outputs["Output"], name="decode-shards") as part:
        decoded = decode(run=part.run_uri, shard=part.shard, num_shards=part.num_shards)
        decoded.set_container_image(train_image)
    return decoded


def index_and_decode(
    run: object, planned: dsl.PipelineTask, num_decode_shards: object, index_image: object,
    train_image: object, after: tuple[dsl.PipelineTask, ...] = (),
) -> Data:  # fmt: skip
    """Scan and decode in shards; `after`: what must have succeeded before a slide is read."""
    scanned, snapshot = index_slides(run, planned, num_decode_shards, index_image, after)
    return Data(scanned, snapshot, decode_held_out(snapshot, train_image))


def judge(shared: dsl.PipelineTask, decoded: dsl.PipelineTask, evaluate_image: object) -> dsl.PipelineTask:
    """Judge all models on all tasks, in the shards that `shared` names: one pod a shard, not one a pair."""
    with dsl.ParallelFor(shared.outputs["Output"], name="evaluation-shards") as part:
        return evaluate(
            run=part.run_uri, shard=part.shard, num_shards=part.num_shards, teacher=part.teacher,
            decoded=dsl.Collected(decoded.output),
        ).set_container_image(evaluate_image)  # fmt: skip


def judge_and_report(
    run: object, shared: dsl.PipelineTask, decoded: dsl.PipelineTask, index_image: object,
    evaluate_image: object,
) -> tuple[dsl.PipelineTask, dsl.PipelineTask]:  # fmt: skip
    """Judge in the shards that `shared` names, then report on all."""
    judged = judge(shared, decoded, evaluate_image)
    report = summarize(run=run, judged=dsl.Collected(judged.outputs["Output"]))
    report.set_container_image(index_image)
    return judged, report
