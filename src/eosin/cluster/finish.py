"""End of a run on a cluster: as Kubeflow's last task sees it, and as a person asks for it."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from eosin.cluster import names
from eosin.cluster.api import Cluster, Manifest, Missing
from eosin.cluster.names import CANCELLED_ANNOTATION, JOBSET, RUN_ID_LABEL, WORKFLOW, jobset_name
from eosin.cluster.resources import is_being_deleted, owner_uids, run_of
from eosin.cluster.training import end_training, terminal_state
from eosin.cluster.workflow import Launcher, has_ended, is_stopped, owning_workflows, stop_workflow
from eosin.errors import UserError
from eosin.observability import RunLog
from eosin.records import KubeflowRun, StepFailure

_BAD_PHASES = {"Failed", "Error"}


@dataclass(frozen=True)
class Left:
    """What a run that has ended leaves: names of training that was stopped, and of training that goes on."""

    stopped: tuple[str, ...]
    training: tuple[str, ...]
    silent: tuple[StepFailure, ...]
    """Steps whose pods ended without being able to say why: evicted, killed for memory, lost."""


def finish_run(cluster: Cluster, launcher: Launcher, *, log: RunLog) -> Left:
    """Stop the training of a Workflow that a person has stopped; leave it where only the run has failed.

    Kubeflow calls its last task alike after success, failure and Terminate, and says FAILED for the last two:
    the Workflow itself tells them apart. A training that another Workflow owns too, and that goes on, is that
    one's. Raises `UserError` where training must be stopped and this identity may not.
    """
    workflow = cluster.get(names.WORKFLOW, launcher.workflow)
    live = _training_of(cluster, launcher)
    to_stop = [job for job in live if is_stopped(workflow) and not _goes_on_elsewhere(cluster, job, launcher)]
    for job in to_stop:  # all are told before any is waited for
        log.event(
            "cancelled", jobset=job["metadata"]["name"], note="the run was terminated; its pods save and end"
        )
        cluster.delete(names.JOBSET, job, propagation="Foreground")
    for job in to_stop:
        end_training(cluster, job)
    going_on = [job for job in live if job not in to_stop]
    for job in going_on:
        log.event("unfollowed", jobset=job["metadata"]["name"], run=run_of(job))
    silent = () if is_stopped(workflow) else tuple(silent_failures(workflow))
    stopped, training = (tuple(job["metadata"]["name"] for job in jobs) for jobs in (to_stop, going_on))
    return Left(stopped, training, silent)


def silent_failures(workflow: Manifest | None) -> Iterator[StepFailure]:
    """A record for each step of which Argo knows a failed pod."""
    nodes = ((workflow or {}).get("status") or {}).get("nodes") or {}
    made_good = {
        child
        for node in nodes.values()
        if node.get("type") == "Retry" and node.get("phase") not in _BAD_PHASES
        for child in node.get("children") or []
    }
    for key, node in nodes.items():
        bad = node.get("type") == "Pod" and node.get("phase") in _BAD_PHASES
        is_driver = "driver" in str(node.get("displayName", ""))  # one of Kubeflow's own
        if bad and key not in made_good and not is_driver:
            code = re.search(r"exit code (\d+)", str(node.get("message", "")))
            yield StepFailure(
                step=_step_of(node),
                message=f"its pod ended: {node.get('message') or node['phase']}",
                hint="eosin resume RUN goes on from the steps that are finished",
                kind="PodFailure",
                exit_code=int(code[1]) if code else 0,
                time=str(node.get("finishedAt") or ""),
                pod=str(node.get("id", "")),
            )


def _training_of(cluster: Cluster, launcher: Launcher) -> list[Manifest]:
    """Live training that the launcher's Workflow owns."""
    uid = launcher.owner.uid if launcher.owner else ""
    found: list[Manifest] = []
    with contextlib.suppress(Missing, UserError):  # an API that is not installed, or not granted
        found = cluster.list_objects(names.JOBSET, f"{names.MANAGED_BY}=eosin")
    mine = [job for job in found if uid in owner_uids(job, names.WORKFLOW.kind)]
    return [job for job in mine if not terminal_state(job) and not is_being_deleted(job)]


def _goes_on_elsewhere(cluster: Cluster, job: Manifest, launcher: Launcher) -> bool:
    for name in owning_workflows(job):
        if name == launcher.workflow:
            continue
        other = cluster.get(names.WORKFLOW, name)
        if other is not None and not is_stopped(other) and not has_ended(other):
            return True
    return False


def _step_of(node: Manifest) -> str:
    """The task's name in the pipeline: `…exit-handler-1.train.executor` → train."""
    path = [part for part in str(node.get("name", "")).split(".") if not part.startswith("executor")]
    return re.sub(r"\(.*", "", path[-1]) if path else "step"


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
