"""An end to a run on a cluster, asked for by a person: its Workflow and its training."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from eosin.cluster.api import Cluster, Manifest, Missing
from eosin.cluster.names import CANCELLED_ANNOTATION, JOBSET, RUN_ID_LABEL, RUNTIME, WORKFLOW, jobset_name
from eosin.cluster.resources import run_of
from eosin.cluster.training_jobs import find_training
from eosin.cluster.workflow import has_ended, owning_workflows, stop_workflow
from eosin.records import KubeflowRun


@dataclass(frozen=True)
class Cancelled:
    """What was stopped on the cluster; both empty: nothing of the run was there."""

    jobset: str
    workflow: str
    """The Kubeflow run's Workflow: while it goes on, it would submit the training again."""
    kind: str = JOBSET.kind

    @property
    def is_any(self) -> bool:
        """Whether anything was there to stop."""
        return bool(self.jobset or self.workflow)

    def __str__(self) -> str:
        stopped = [f"{self.kind} {self.jobset}"] if self.jobset else []
        stopped += [f"Workflow {self.workflow}"] if self.workflow else []
        return f"{' and '.join(stopped)} stopped" if stopped else "nothing of the run is on the cluster"


def cancel_on_cluster(run_uri: str, cluster: Cluster, place: KubeflowRun | None = None) -> Cancelled:
    """Stop the run's Workflows, delete its JobSet or TrainJob and pods; what is in the bucket stays.

    `place` is where the run was submitted: by it a run is found that has not come to training yet. The
    Workflows are told first, or one would submit the training again. Raises `UserError` where this identity
    may not.
    """
    found = find_training(cluster, jobset_name(run_uri))
    workflows = _live_workflows(cluster, place, found[1] if found else None)
    stopped = [name for name in workflows if stop_workflow(cluster, name)]
    if found is None:
        _remove_runtime_left(cluster, run_uri)
        return Cancelled("", ", ".join(stopped))
    jobs, job = found
    name = job["metadata"]["name"]
    try:  # so that a launcher that follows it knows why it goes
        cluster.patch(jobs.resource, name, {"metadata": {"annotations": {CANCELLED_ANNOTATION: "true"}}})
    except Missing:
        return Cancelled("", ", ".join(stopped))
    jobs.delete(job)
    return Cancelled(name, ", ".join(stopped), jobs.resource.kind)


def _live_workflows(cluster: Cluster, place: KubeflowRun | None, job: Manifest | None) -> list[str]:
    names = owning_workflows(job) if job else []
    if place is not None and place.workflow:
        names.append(place.workflow)
    found = [cluster.get(WORKFLOW, name) for name in dict.fromkeys(names)]
    if place is not None and place.run_id:
        with contextlib.suppress(Missing):
            found += cluster.list_objects(WORKFLOW, f"{RUN_ID_LABEL}={place.run_id}")
    live = [each["metadata"]["name"] for each in found if each is not None and not has_ended(each)]
    return list(dict.fromkeys(live))


def _remove_runtime_left(cluster: Cluster, run_uri: str) -> None:
    """A cancel that was killed between the TrainJob and its runtime leaves the runtime."""
    runtime = cluster.get(RUNTIME, jobset_name(run_uri))
    if runtime is not None and run_of(runtime) == run_uri:
        cluster.delete(RUNTIME, runtime)
