"""Train, with torchrun in this pod or as a JobSet across node pools."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def train(run: str, backend: str, metrics: dsl.Output[dsl.Metrics]) -> list:
    """Train to the end; returns the (model, task) pairs to evaluate."""
    from eosin import steps

    done = steps.as_step(steps.train, run, backend)
    metrics.log_metric("steps", done.num_steps)
    if done.final_loss is not None:
        metrics.log_metric("final loss", done.final_loss)
    pairs = steps.as_step(steps.evaluations, run)
    # `.task` and `.task_name` of a loop item are taken by kfp itself.
    return [{"run_uri": run, "model": pair["model"], "judged_on": pair["task"]} for pair in pairs]
