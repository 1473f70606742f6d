"""Train a run on a cluster: submit or adopt its JobSet or TrainJob, follow it, and say how it ended."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from eosin.cluster import create, names
from eosin.cluster.api import Cluster, Manifest, connect
from eosin.cluster.follow import Follower, phases
from eosin.cluster.jobset import render_disruption_budget, render_jobset
from eosin.cluster.names import OwnerReference, jobset_name
from eosin.cluster.ours import with_digest
from eosin.cluster.owner import Launcher, find_launcher, stop_owner
from eosin.cluster.podlogs import PodLogMirror, echo_prefix
from eosin.cluster.site import load_site, with_site_defaults
from eosin.cluster.spotjobs import (
    ensure_spot_jobs,
    remove_leftovers,
    remove_spot_jobs,
    render_spot_jobs,
)
from eosin.cluster.trainer import check_kind, ensure_runtime, find_training
from eosin.cluster.trainjob import render_trainjob
from eosin.config import RunConfig
from eosin.errors import EosinError, PermanentError, TransientError, UserError
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.process import sigterm_raises
from eosin.records import TrainingDone
from eosin.runs import load_pin, load_run, load_training_done, missing_teachers
from eosin.storage import Store, join_uri, open_store


class _Terminated(BaseException):
    """SIGTERM reached the launcher."""


def train_on_cluster(run_uri: str, *, log: RunLog, cluster: Cluster | None = None) -> TrainingDone:
    """Train `run_uri` to the end as `cluster.job_api` says; a no-op where training has ended before and its
    teachers are there. Where some have been deleted since, pods make them again from their checkpoints.

    Safe to kill and call again: the JobSet (or TrainJob) has one name a run and is adopted. On SIGTERM it is
    deleted where the run's Workflow was cancelled, and left to train where only this pod is evicted
    (`TransientError`: call again). Ctrl-C leaves it training.

    Raises `UserError` (configuration, credentials, image), `PermanentError` and `TransientError`, each
    with the pod, its exit code, its last words and what to do.
    """
    store = open_store(run_uri)
    config = load_run(run_uri, store=store)
    done = load_training_done(store, config)
    if done is not None:
        missing = missing_teachers(store, done)
        if not missing:
            log.event("skipped", reason="training has ended before", num_steps=done.num_steps)
            if config.cluster.spot_as == "elastic-job":
                name, namespace = jobset_name(run_uri), config.cluster.namespace
                remove_leftovers(name, lambda: cluster or connect(namespace, attempts=1), log=log)
            return done
        log.event("missing-teachers", models=missing)
    load_pin(run_uri, store=store)
    cluster = cluster or connect(config.cluster.namespace)
    placement = with_site_defaults(config.cluster, load_site(cluster))
    config = config.model_copy(update={"cluster": placement})
    cluster = cluster.through(names.TRAINJOB if placement.job_api == "trainjob" else names.JOBSET)
    launcher = find_launcher(cluster)
    with sigterm_raises(_Terminated):
        try:
            return _train(run_uri, config, store, cluster, launcher, log)
        except _Terminated:
            raise _terminated(run_uri, cluster, launcher, log) from None
        except KeyboardInterrupt:
            log.event(
                "detached", jobset=jobset_name(run_uri), note="training goes on; run it again to follow"
            )
            raise


@dataclass(frozen=True)
class Cancelled:
    """What was stopped; both empty: nothing of the run was there."""

    jobset: str
    workflow: str
    """The Kubeflow run's Workflow: while it goes on, it would submit the training again."""
    kind: str = names.JOBSET.kind

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
    cluster, jobset = found
    workflow = stop_owner(cluster, jobset)
    create.delete_and_wait(cluster, jobset)
    return Cancelled(jobset["metadata"]["name"], workflow, cluster.job_api.kind)


@dataclass(frozen=True)
class LiveState:
    """What a cluster says about a run's training now."""

    jobset: str
    state: str
    """Running, Suspended, Completed or Failed."""
    restarts: int
    pods: dict[str, dict[str, int]]
    """Pool → phase → number of pods."""
    kind: str = names.JOBSET.kind

    def __str__(self) -> str:
        pools = (
            f"{pool} {', '.join(f'{number} {phase.lower()}' for phase, number in sorted(each.items()))}"
            for pool, each in sorted(self.pods.items())
        )
        restarts = f", {self.restarts} restarts" if self.restarts else ""
        return " · ".join([f"{self.kind} {self.jobset}: {self.state.lower()}{restarts}", *pools])


def live_state(run_uri: str, *, cluster: Cluster | None = None) -> LiveState | None:
    """The run's JobSet or TrainJob as the cluster shows it, if there is one. Every call is tried once."""
    cluster = cluster or connect(load_run(run_uri).cluster.namespace, attempts=1)
    found = find_training(cluster, jobset_name(run_uri))
    if found is None:
        return None
    cluster, jobset = found
    suspended = jobset["spec"].get("suspend") is True
    state = create.terminal_state(jobset) or ("Suspended" if suspended else "Running")
    restarts = int((jobset.get("status") or {}).get("restarts", 0))
    pods = phases(cluster.list_pods(jobset["metadata"]["name"]))
    return LiveState(jobset["metadata"]["name"], state, restarts, pods, cluster.job_api.kind)


def _train(
    run_uri: str, config: RunConfig, store: Store, cluster: Cluster, launcher: Launcher, log: RunLog
) -> TrainingDone:
    jobset = _submit(run_uri, config, store, cluster, launcher, log)
    name = jobset["metadata"]["name"]
    mirror = PodLogMirror(cluster, store, echo=echo_prefix(name, config.cluster.pools[0].name))
    follower = Follower(cluster, mirror, log, config.cluster.stuck_timeout_s)
    try:
        ended = follower.follow(name)
    except BaseException:
        mirror.close(timeout_s=1)
        raise
    mirror.close()
    if ended is None:
        raise TransientError(
            f"{cluster.job_api.kind} {name} was deleted while it trained",
            hint="run it again: it goes on from the last checkpoint",
        )
    failure = follower.explain(ended) if create.terminal_state(ended) == "Failed" else None
    remove_spot_jobs(cluster, ended)
    if failure is not None:
        raise failure
    return _finished(store, config, f"{cluster.job_api.kind} {name}")


def _submit(
    run_uri: str, config: RunConfig, store: Store, cluster: Cluster, launcher: Launcher, log: RunLog
) -> Manifest:
    image = config.cluster.image or os.environ.get("EOSIN_TRAIN_IMAGE", "") or launcher.image
    prepare, manifest = _wanted(config, run_uri, image, cluster, launcher, log)
    check_kind(cluster, manifest["metadata"]["name"])
    jobset = create.create_or_adopt(
        cluster, manifest, log=log, is_done=lambda: _has_result(store, config), prepare=prepare
    )
    name, uid = jobset["metadata"]["name"], jobset["metadata"].get("uid", "")
    owner = OwnerReference(jobset["apiVersion"], cluster.job_api.kind, name, uid)
    jobs = render_spot_jobs(config, run_uri, image=image, jobset=jobset)
    if not create.terminal_state(jobset):
        ensure_spot_jobs(cluster, jobs, log=log)
    cluster.create_budget(render_disruption_budget(config, run_uri, namespace=cluster.namespace, owner=owner))
    return jobset


def _wanted(
    config: RunConfig, run_uri: str, image: str, cluster: Cluster, launcher: Launcher, log: RunLog
) -> tuple[Callable[[], None], Manifest]:
    """What makes the objects that the JobSet or TrainJob refers to, and the JobSet or TrainJob itself."""
    if cluster.job_api == names.JOBSET:
        return _nothing, render_jobset(
            config, run_uri, image=image, namespace=cluster.namespace, owner=launcher.owner
        )
    runtime, job = render_trainjob(
        config, run_uri, image=image, namespace=cluster.namespace, owner=launcher.owner
    )
    # The pods are the runtime's: by its spec one tells whether they would be others now.
    runtime, job = with_digest(runtime), with_digest(job, runtime["spec"])
    return lambda: ensure_runtime(cluster, runtime, log=log), job


def _nothing() -> None:
    """A JobSet refers to nothing that must be there before it."""


def _has_result(store: Store, config: RunConfig) -> bool:
    done = load_training_done(store, config)
    return done is not None and not missing_teachers(store, done)


def _finished(store: Store, config: RunConfig, name: str) -> TrainingDone:
    done = load_training_done(store, config)
    if done is None:
        raise PermanentError(
            f"{name} completed, but {join_uri(store.uri, RunLayout.TRAINING_DONE)} is not there",
            hint="look at `eosin logs`; run it again: it goes on from the last checkpoint",
        )
    return done


def _terminated(run_uri: str, cluster: Cluster, launcher: Launcher, log: RunLog) -> EosinError:
    name = jobset_name(run_uri)
    called = f"{cluster.job_api.kind} {name}"
    if launcher.was_cancelled(cluster):
        jobset = cluster.get_jobset(name)
        if jobset is not None:
            create.delete(cluster, jobset)
        log.event("cancelled", jobset=name)
        return UserError(
            f"the run was cancelled; {called} is deleted",
            hint="what it saved stays in the run",
        )
    log.event("detached", jobset=name, note="this pod is evicted; training goes on")
    return TransientError(
        f"the launcher was stopped while {called} trains",
        hint="run it again to follow it",
    )
