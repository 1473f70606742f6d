"""Say which models are judged on which tasks where nothing is trained."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def choose(run: str, teacher: str) -> list:
    """The (model, task) pairs of a teacher from anywhere with the tasks of a run."""
    from eosin import steps

    pairs = steps.as_step(steps.evaluations, run, teacher)
    # `.task` and `.task_name` of a loop item are taken by kfp itself.
    return [{"run_uri": run, "model": pair["model"], "judged_on": pair["task"]} for pair in pairs]
