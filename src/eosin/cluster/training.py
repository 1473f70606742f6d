"""JobSet of a training on a cluster: submitted or adopted, ended, and what it has come to."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from eosin.cluster.api import AlreadyExists, Cluster, Manifest, Missing
from eosin.cluster.jobset import render_disruption_budget, render_jobset
from eosin.cluster.names import JOBSET, OwnerReference, condition, owners
from eosin.cluster.queue import is_dispatched
from eosin.cluster.resources import (
    delete_and_wait,
    ensure,
    is_being_deleted,
    owner_uids,
    same_digest,
    with_digest,
)
from eosin.cluster.spot_jobs import ensure_spot_jobs, remove_spot_jobs, render_spot_jobs, spot_job_names
from eosin.config import RunConfig
from eosin.errors import TransientError, UserError
from eosin.observability import RunLog
from eosin.runs import load_pin, load_run

_GONE_TIMEOUT_S = 600.0
_OWNER_ATTEMPTS = 5


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


def submit_training(
    cluster: Cluster, submission: Submission, *, sleep: Callable[[float], None] = time.sleep
) -> Manifest:
    """The JobSet that trains the run, with its spot Jobs: made now, or found from before.

    One that has ended without a result belongs to an attempt before this one: it is deleted and made
    anew, and training goes on from its last checkpoint. Raises `UserError` where the name belongs to
    something else or the API is not installed.
    """
    config, run_uri, image = submission.config, submission.run_uri, submission.image
    manifest = render_jobset(
        config, run_uri, image=image, namespace=cluster.namespace, owner=submission.owner
    )
    try:
        jobset = _ensure_jobset(cluster, with_digest(manifest), submission, sleep)
    except Missing as error:
        raise UserError(
            f"this cluster has no JobSet API, or the namespace is missing ({error})",
            hint="install the prerequisites: kubectl apply --server-side -k manifests/prerequisites",
        ) from error
    if not terminal_state(jobset):
        _refuse_to_scatter(cluster, jobset, sleep)
        jobs = render_spot_jobs(config, run_uri, image=image, jobset=jobset)
        ensure_spot_jobs(cluster, jobs, log=submission.log, sleep=sleep)
    return jobset


def render_training(run_uri: str, image: str = "") -> list[Manifest]:
    """All that trains a planned and indexed run, as it would be made; `image`: none is `cluster.image`.

    Asks no cluster. Raises `UserError` where the run has no snapshot, or its configuration cannot work.
    """
    config = load_run(run_uri)
    load_pin(run_uri)
    image = image or config.cluster.image
    jobset = render_jobset(config, run_uri, image=image)
    spot_jobs = render_spot_jobs(config, run_uri, image=image, jobset=jobset)
    return [render_disruption_budget(config, run_uri), jobset, *spot_jobs]


def _refuse_to_scatter(cluster: Cluster, jobset: Manifest, sleep: Callable[[float], None]) -> None:
    """Jobs beside a JobSet that MultiKueue dispatches could go to another cluster than it, and never meet."""
    if is_dispatched(jobset) and spot_job_names(jobset):
        end_training(cluster, jobset, sleep=sleep)
        raise UserError(
            "the queue dispatches to other clusters (MultiKueue), and spot Jobs might go to another one",
            hint="set cluster.spot_as: jobset",
        )


def end_training(cluster: Cluster, jobset: Manifest, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Delete this very JobSet, with its spot Jobs, and wait until it and its pods are gone."""
    remove_spot_jobs(cluster, jobset)
    delete_and_wait(cluster, JOBSET, jobset, timeout_s=_GONE_TIMEOUT_S, propagation="Foreground", sleep=sleep)


def terminal_state(jobset: Manifest) -> str:
    """`Completed`, `Failed`, or empty while it lives."""
    status = jobset.get("status") or {}
    if status.get("terminalState"):
        return str(status["terminalState"])
    return next((kind for kind in ("Completed", "Failed") if condition(jobset, kind)), "")


def _ensure_jobset(
    cluster: Cluster, manifest: Manifest, submission: Submission, sleep: Callable[[float], None]
) -> Manifest:
    log, name = submission.log, manifest["metadata"]["name"]

    def keep(existing: Manifest) -> bool:
        if not is_being_deleted(existing) and not terminal_state(existing):
            return True
        return terminal_state(existing) == "Completed" and submission.is_done()

    def replace(existing: Manifest) -> None:
        log.event("jobset-replaced", jobset=name, ended=terminal_state(existing) or "being deleted")
        end_training(cluster, existing, sleep=sleep)

    found, outcome = ensure(cluster, JOBSET, manifest, keep=keep, replace=replace)
    if outcome == "created":
        log.event("jobset-created", jobset=name, namespace=cluster.namespace)
        return found
    found = add_owner(cluster, found, submission.owner)
    note = "it runs with the placement it was made with; delete it to apply the changed one"
    log.event("jobset-adopted", jobset=name, **({} if same_digest(found, manifest) else {"note": note}))
    return found


def add_owner(cluster: Cluster, jobset: Manifest, owner: OwnerReference | None) -> Manifest:
    """Have `owner` own the JobSet too, so that the end of a Workflow before it takes nothing along.

    An object with several owners is garbage only when all of them are gone. Others may add theirs at the
    same time: the list is replaced only where nobody has changed the object meanwhile.
    """
    name = jobset["metadata"]["name"]
    for _ in range(_OWNER_ATTEMPTS):
        metadata = jobset["metadata"]
        if owner is None or owner.uid in owner_uids(jobset, owner.kind):
            return jobset
        all_owners = [*owners(jobset), owner.manifest()]
        seen = {"resourceVersion": metadata["resourceVersion"]} if metadata.get("resourceVersion") else {}
        try:
            return cluster.patch(JOBSET, name, {"metadata": {"ownerReferences": all_owners, **seen}})
        except AlreadyExists:  # HTTP 409: changed meanwhile
            jobset = cluster.get(JOBSET, name) or jobset
    raise TransientError(f"JobSet {name} changes all the time", hint="run it again")
