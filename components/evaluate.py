"""Evaluation of one shard: a share of the models on their tasks."""

from kfp import dsl


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
