"""End what a run has left on the cluster, whatever ended the run."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def finish(run: str) -> None:
    """Runs last, after success, failure and Kubeflow's Terminate alike: see `steps.finish`."""
    from eosin import steps

    steps.as_step(steps.finish, run)
