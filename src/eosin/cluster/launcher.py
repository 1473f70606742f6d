"""Launcher of a run's training on a cluster: submits or adopts its JobSet, and follows it."""

import contextlib
import os

from eosin.cluster.api import AlreadyExists, Cluster, Manifest, connect
from eosin.cluster.defaults import load_defaults, with_defaults
from eosin.cluster.follow import Follower
from eosin.cluster.jobset import render_disruption_budget
from eosin.cluster.names import BUDGET, CANCELLED_ANNOTATION, JOBSET, OwnerReference, jobset_name
from eosin.cluster.pod_logs import PodLogMirror, echo_prefix
from eosin.cluster.spot_jobs import remove_leftovers, remove_spot_jobs
from eosin.cluster.training import Submission, end_training, submit_training, terminal_state
from eosin.cluster.workflow import Launcher, find_launcher
from eosin.config import RunConfig
from eosin.errors import EosinError, PermanentError, TransientError, UserError
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.process import sigterm_raises
from eosin.records import TrainingDone
from eosin.runs import load_pin, load_run, load_training_done, missing_teachers
from eosin.storage import Store, join_uri, open_store

_CANCELLED_HINT = "what it saved stays in the run; the same run URI continues it"


class _Terminated(BaseException):
    """SIGTERM reached the launcher."""


def train_on_cluster(run_uri: str, *, log: RunLog, cluster: Cluster | None = None) -> TrainingDone:
    """Train `run_uri` to the end as a JobSet; a no-op where training has ended before and its
    teachers are there. Where some have been deleted since, pods make them again from their checkpoints.

    Safe to kill and call again: the JobSet has one name a run and is adopted. On SIGTERM it is
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
    placement = with_defaults(config.cluster, load_defaults(cluster))
    config = config.model_copy(update={"cluster": placement})
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


def _train(
    run_uri: str, config: RunConfig, store: Store, cluster: Cluster, launcher: Launcher, log: RunLog
) -> TrainingDone:
    image = config.cluster.image or os.environ.get("EOSIN_TRAIN_IMAGE", "") or launcher.image
    asked = Submission(config, run_uri, image, launcher.owner, log, lambda: _has_result(store, config))
    job = submit_training(cluster, asked)
    name = job["metadata"]["name"]
    owner = OwnerReference(JOBSET.api_version, JOBSET.kind, name, job["metadata"].get("uid", ""))
    budget = render_disruption_budget(config, run_uri, namespace=cluster.namespace, owner=owner)
    with contextlib.suppress(AlreadyExists):
        cluster.create(BUDGET, budget)
    mirror = PodLogMirror(cluster, store, echo=echo_prefix(name, config.cluster.pools[0].name))
    follower = Follower(cluster, mirror, log, config.cluster.stuck_timeout_s)
    try:
        ended = follower.follow(name)
    except BaseException:
        mirror.close(timeout_s=1)
        raise
    mirror.close()
    if ended is None:
        raise _deleted(cluster, follower.last or job, launcher)
    failure = follower.explain(ended) if terminal_state(ended) == "Failed" else None
    remove_spot_jobs(cluster, ended)
    if failure is not None:
        raise failure
    return _finished(store, config, f"JobSet {name}")


def _deleted(cluster: Cluster, last: Manifest, launcher: Launcher) -> EosinError:
    """The error of a training that went while it was followed."""
    called = f"JobSet {last['metadata']['name']}"
    annotations = last["metadata"].get("annotations") or {}
    if CANCELLED_ANNOTATION in annotations or launcher.was_cancelled(cluster):
        return UserError(f"the run was cancelled; {called} is deleted", hint=_CANCELLED_HINT)
    return TransientError(
        f"{called} was deleted while it trained", hint="run it again: it goes on from the last checkpoint"
    )


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
    called = f"JobSet {name}"
    if launcher.was_cancelled(cluster):
        jobset = cluster.get(JOBSET, name)
        if jobset is not None:
            end_training(cluster, jobset)
        log.event("cancelled", jobset=name)
        return UserError(f"the run was cancelled; {called} is deleted", hint=_CANCELLED_HINT)
    log.event("detached", jobset=name, note="this pod is evicted; training goes on")
    return TransientError(f"the launcher was stopped while {called} trains", hint="run it again to follow it")
