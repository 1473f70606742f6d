"""Shards of evaluation where nothing is trained."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def choose(run: str, teacher: str, num_evaluation_shards: int) -> list:
    """Shards of judging a teacher from anywhere on the tasks of a run."""
    from eosin import steps

    return steps.as_step(steps.evaluation_shards, run, num_evaluation_shards, teacher)
