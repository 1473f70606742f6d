"""Train, with torchrun in this pod or as a JobSet across node pools."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def train(run: str, backend: str, num_evaluation_shards: int, metrics: dsl.Output[dsl.Metrics]) -> list:
    """Train to the end; returns the shards of evaluation."""
    from eosin import steps

    done = steps.as_step(steps.train, run, backend)
    metrics.log_metric("steps", done.num_steps)
    if done.final_loss is not None:
        metrics.log_metric("final loss", done.final_loss)
    return steps.as_step(steps.evaluation_shards, run, num_evaluation_shards)
