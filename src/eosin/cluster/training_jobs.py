"""The two kinds of object that train a run on a cluster, JobSet and TrainJob, behind one protocol."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from eosin.cluster.api import AlreadyExists, Cluster, Manifest, Missing
from eosin.cluster.jobset import render_jobset
from eosin.cluster.names import JOBSET, TRAINJOB, OwnerReference, Resource
from eosin.cluster.resources import (
    Outcome,
    delete_and_wait,
    ensure,
    is_being_deleted,
    owner_uids,
    same_digest,
    with_digest,
)
from eosin.cluster.spot_jobs import ensure_spot_jobs, remove_spot_jobs, render_spot_jobs
from eosin.cluster.training_runtime import ensure_runtime, remove_runtime, trainer_not_installed
from eosin.cluster.trainjob import render_trainjob
from eosin.config import RunConfig
from eosin.errors import TransientError, UserError
from eosin.observability import RunLog

_GONE_TIMEOUT_S = 600.0
_OWNER_ATTEMPTS = 5
# A TrainJob is Complete where a JobSet is Completed.
_ENDS = {"Completed": "Completed", "Complete": "Completed", "Failed": "Failed"}


@dataclass(frozen=True)
class Submission:
    """What is asked of a cluster: the run, the image of its pods, and who is to own what is made."""

    config: RunConfig
    run_uri: str
    image: str
    owner: OwnerReference | None
    log: RunLog
    is_done: Callable[[], bool]
    """Whether the bucket holds the result of the training."""


class TrainingJobs(Protocol):
    """Training by objects of one kind, `resource`, in the namespace of `cluster`."""

    @property
    def cluster(self) -> Cluster:
        """The namespace that the objects are made in."""
        ...

    @property
    def resource(self) -> Resource:
        """The kind of object that trains."""
        ...

    def submit(self, submission: Submission) -> Manifest:
        """The object that trains the run, with all that belongs to it: made now, or found from before.

        One that has ended without a result belongs to an attempt before this one: it is deleted and made
        anew, and training goes on from its last checkpoint. Raises `UserError` where the name belongs to
        something else or the API is not installed.
        """

    def delete(self, job: Manifest) -> None:
        """Delete this very object, with what belongs to it, and wait until it and its pods are gone."""

    def remove_surplus(self, job: Manifest) -> None:
        """Delete what would still run, or wait for a node, though `job` has ended."""


@dataclass(frozen=True)
class JobSets:
    """Training by a JobSet, with spot pools as Jobs beside it where the run asks for them."""

    cluster: Cluster
    sleep: Callable[[float], None] = time.sleep
    resource: ClassVar[Resource] = JOBSET

    def submit(self, submission: Submission) -> Manifest:
        config, run_uri, image = submission.config, submission.run_uri, submission.image
        namespace = self.cluster.namespace
        manifest = render_jobset(config, run_uri, image=image, namespace=namespace, owner=submission.owner)
        try:
            jobset = _ensure_job(self, with_digest(manifest), submission)
        except Missing as error:
            raise UserError(
                f"this cluster has no JobSet API, or the namespace is missing ({error})",
                hint="install the prerequisites: kubectl apply --server-side -k manifests/prerequisites",
            ) from error
        if not terminal_state(jobset):
            jobs = render_spot_jobs(config, run_uri, image=image, jobset=jobset)
            ensure_spot_jobs(self.cluster, jobs, log=submission.log, sleep=self.sleep)
        return jobset

    def delete(self, job: Manifest) -> None:
        remove_spot_jobs(self.cluster, job)
        _delete_job(self, job, self.sleep)

    def remove_surplus(self, job: Manifest) -> None:
        remove_spot_jobs(self.cluster, job)


@dataclass(frozen=True)
class TrainJobs:
    """Training by a TrainJob of Kubeflow Trainer, after the TrainingRuntime it refers to."""

    cluster: Cluster
    sleep: Callable[[float], None] = time.sleep
    resource: ClassVar[Resource] = TRAINJOB

    def submit(self, submission: Submission) -> Manifest:
        runtime, job = render_trainjob(
            submission.config, submission.run_uri,
            image=submission.image, namespace=self.cluster.namespace, owner=submission.owner,
        )  # fmt: skip
        # The pods are the runtime's: by its spec one tells whether they would be others now.
        runtime, job = with_digest(runtime), with_digest(job, runtime["spec"])
        prepare = lambda: ensure_runtime(self.cluster, runtime, log=submission.log)  # noqa: E731
        try:
            return _ensure_job(self, job, submission, prepare)
        except Missing as error:
            raise trainer_not_installed(str(error)) from error

    def delete(self, job: Manifest) -> None:
        _delete_job(self, job, self.sleep)
        remove_runtime(self.cluster, job)

    def remove_surplus(self, job: Manifest) -> None:
        """Nothing: all pods are the TrainJob's own."""


def training_jobs(cluster: Cluster, job_api: str) -> TrainingJobs:
    """The kind that `cluster.job_api` names: "jobset" or "trainjob"."""
    return TrainJobs(cluster) if job_api == "trainjob" else JobSets(cluster)


def find_training(cluster: Cluster, name: str) -> tuple[TrainingJobs, Manifest] | None:
    """The JobSet of that name, or the TrainJob that made it, and the kind it is of.

    Raises `UserError` where there is a TrainJob and this identity may not read it.
    """
    jobset = cluster.get(JOBSET, name)
    if jobset is not None and not owner_uids(jobset, TRAINJOB.kind):
        return JobSets(cluster), jobset
    try:
        job = cluster.get(TRAINJOB, name)
    except UserError:
        if jobset is not None:
            raise
        return None  # a Role from before may not look for TrainJobs, and then has made none
    return None if job is None else (TrainJobs(cluster), job)


def check_kind(jobs: TrainingJobs, name: str) -> None:
    """Raise `UserError` where the run trains already by objects of the other kind."""
    found = find_training(jobs.cluster, name)
    if found is not None and found[0].resource != jobs.resource:
        raise UserError(
            f"{found[0].resource.kind} {name} is there already, and cluster.job_api asks for "
            f"a {jobs.resource.kind}",
            hint="stop it with `eosin cancel`, or set cluster.job_api to what it was made with",
        )


def terminal_state(job: Manifest) -> str:
    """`Completed`, `Failed`, or empty while it lives."""
    status = job.get("status") or {}
    if status.get("terminalState"):
        return str(status["terminalState"])
    for condition in status.get("conditions") or []:
        if condition["type"] in _ENDS and condition["status"] == "True":
            return _ENDS[condition["type"]]
    return ""


def _ensure_job(
    jobs: TrainingJobs, manifest: Manifest, submission: Submission, prepare: Callable[[], None] = lambda: None
) -> Manifest:
    log, name = submission.log, manifest["metadata"]["name"]

    def keep(existing: Manifest) -> bool:
        if not is_being_deleted(existing) and not terminal_state(existing):
            return True
        return terminal_state(existing) == "Completed" and submission.is_done()

    def replace(existing: Manifest) -> None:
        log.event("jobset-replaced", jobset=name, ended=terminal_state(existing) or "being deleted")
        jobs.delete(existing)

    found, outcome = ensure(
        jobs.cluster, jobs.resource, manifest, keep=keep, replace=replace, prepare=prepare
    )
    if outcome == "adopted":
        found = add_owner(jobs.cluster, jobs.resource, found, submission.owner)
    log.event(f"jobset-{outcome}", jobset=name, **_details(outcome, found, manifest, jobs.cluster.namespace))
    return found


def add_owner(
    cluster: Cluster, resource: Resource, existing: Manifest, owner: OwnerReference | None
) -> Manifest:
    """Have `owner` own the object too, so that the end of a Workflow before it takes nothing along.

    An object with several owners is garbage only when all of them are gone. Others may add theirs at the
    same time: the list is replaced only where nobody has changed the object meanwhile.
    """
    name = existing["metadata"]["name"]
    for _ in range(_OWNER_ATTEMPTS):
        metadata = existing["metadata"]
        if owner is None or owner.uid in owner_uids(existing, owner.kind):
            return existing
        owners = [*(metadata.get("ownerReferences") or []), owner.manifest()]
        seen = {"resourceVersion": metadata["resourceVersion"]} if metadata.get("resourceVersion") else {}
        try:
            return cluster.patch(resource, name, {"metadata": {"ownerReferences": owners, **seen}})
        except AlreadyExists:  # HTTP 409: changed meanwhile
            existing = cluster.get(resource, name) or existing
    raise TransientError(f"{resource.kind} {name} changes all the time", hint="run it again")


def _details(outcome: Outcome, found: Manifest, wanted: Manifest, namespace: str) -> dict[str, str]:
    """What is worth saying, such as that what runs has other nodes, images or limits than asked for now."""
    if outcome == "created":
        return {"namespace": namespace}
    if same_digest(found, wanted):
        return {}
    return {"note": "it runs with the placement it was made with; delete it to apply the changed one"}


def _delete_job(jobs: TrainingJobs, job: Manifest, sleep: Callable[[float], None]) -> None:
    delete_and_wait(
        jobs.cluster, jobs.resource, job,
        timeout_s=_GONE_TIMEOUT_S, propagation="Foreground", sleep=sleep,
    )  # fmt: skip
