"""Judge one checkpoint on one task."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def evaluate(run: str, model: str, task: str, decoded: list, metrics: dsl.Output[dsl.Metrics]) -> str:
    """Publish the metric record of (model, task); returns its status."""
    from eosin import steps

    print(f"{len(decoded)} shards of held-out patches are ready")
    record = steps.as_step(steps.evaluate, run, model, task)
    for name, value in record.metrics.items():
        metrics.log_metric(f"{model} {task} {name}", value.mean)
    return record.status
