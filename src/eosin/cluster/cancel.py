"""An end to a run on a cluster, asked for by a person: its Workflow and its training."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from eosin.cluster.api import Cluster, Manifest, Missing
from eosin.cluster.names import CANCELLED_ANNOTATION, JOBSET, RUN_ID_LABEL, WORKFLOW, jobset_name
from eosin.cluster.training import end_training
from eosin.cluster.workflow import has_ended, owning_workflows, stop_workflow
from eosin.records import KubeflowRun


@dataclass(frozen=True)
class Cancelled:
    """What was stopped on the cluster; both empty: nothing of the run was there."""

    jobset: str
    workflow: str
    """The Kubeflow run's Workflow: while it goes on, it would submit the training again."""

    @property
    def is_any(self) -> bool:
        """Whether anything was there to stop."""
        return bool(self.jobset or self.workflow)

    def __str__(self) -> str:
        stopped = [f"JobSet {self.jobset}"] if self.jobset else []
        stopped += [f"Workflow {self.workflow}"] if self.workflow else []
        return f"{' and '.join(stopped)} stopped" if stopped else "nothing of the run is on the cluster"


def cancel_on_cluster(run_uri: str, cluster: Cluster, place: KubeflowRun | None = None) -> Cancelled:
    """Stop the run's Workflows, delete its JobSet and pods; what is in the bucket stays.

    `place` is where the run was submitted: by it a run is found that has not come to training yet. The
    Workflows are told first, or one would submit the training again. Raises `UserError` where this identity
    may not.
    """
    name = jobset_name(run_uri)
    jobset = cluster.get(JOBSET, name)
    workflows = _live_workflows(cluster, place, jobset)
    stopped = [name for name in workflows if stop_workflow(cluster, name)]
    if jobset is None:
        return Cancelled("", ", ".join(stopped))
    try:  # so that a launcher that follows it knows why it goes
        cluster.patch(JOBSET, name, {"metadata": {"annotations": {CANCELLED_ANNOTATION: "true"}}})
    except Missing:
        return Cancelled("", ", ".join(stopped))
    end_training(cluster, jobset)
    return Cancelled(name, ", ".join(stopped))


def _live_workflows(cluster: Cluster, place: KubeflowRun | None, jobset: Manifest | None) -> list[str]:
    names = owning_workflows(jobset) if jobset else []
    if place is not None and place.workflow:
        names.append(place.workflow)
    found = [cluster.get(WORKFLOW, name) for name in dict.fromkeys(names)]
    if place is not None and place.run_id:
        with contextlib.suppress(Missing):
            found += cluster.list_objects(WORKFLOW, f"{RUN_ID_LABEL}={place.run_id}")
    live = [each["metadata"]["name"] for each in found if each is not None and not has_ended(each)]
    return list(dict.fromkeys(live))
