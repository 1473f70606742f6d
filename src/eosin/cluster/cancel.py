"""An end to a run's training on a cluster, asked for by a person."""

from __future__ import annotations

from dataclasses import dataclass

from eosin.cluster.api import Cluster, connect
from eosin.cluster.names import JOBSET, jobset_name
from eosin.cluster.training_jobs import find_training
from eosin.cluster.workflow import owning_workflows, stop_workflow
from eosin.runs import load_run


@dataclass(frozen=True)
class Cancelled:
    """What was stopped; both empty: nothing of the run was there."""

    jobset: str
    workflow: str
    """The Kubeflow run's Workflow: while it goes on, it would submit the training again."""
    kind: str = JOBSET.kind

    def __str__(self) -> str:
        stopped = [f"{self.kind} {self.jobset}"] if self.jobset else []
        stopped += [f"Workflow {self.workflow}"] if self.workflow else []
        return f"{' and '.join(stopped)} stopped" if stopped else "nothing of the run is on the cluster"


def cancel_training(run_uri: str, *, cluster: Cluster | None = None) -> Cancelled:
    """Stop the run's Workflow, delete its JobSet or TrainJob and pods; what is in the bucket stays."""
    cluster = cluster or connect(load_run(run_uri).cluster.namespace)
    found = find_training(cluster, jobset_name(run_uri))
    if found is None:
        return Cancelled("", "")
    jobs, job = found
    stopped = [name for name in owning_workflows(job) if stop_workflow(cluster, name)]
    jobs.delete(job)
    return Cancelled(job["metadata"]["name"], ", ".join(stopped), jobs.resource.kind)
