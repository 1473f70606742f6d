"""Training through Kubeflow Trainer: the runtime beside a TrainJob, and which kind a run's training is of."""

from __future__ import annotations

import time
from collections.abc import Callable

from eosin.cluster import names
from eosin.cluster.api import AlreadyExists, Cluster, Manifest, Missing
from eosin.cluster.gone import wait_until_gone
from eosin.cluster.ours import check_ours, same_digest
from eosin.errors import TransientError, UserError
from eosin.observability import RunLog

_GONE_TIMEOUT_S = 300.0
_ATTEMPTS = 5
# Trainer refuses a TrainJob whose runtime its own cache does not hold yet.
_SEEN_S = 1.0
_API = (names.TRAINJOB.group, names.TRAINJOB.version)


def find_training(cluster: Cluster, name: str) -> tuple[Cluster, Manifest] | None:
    """The JobSet of that name, or the TrainJob that made it, with the cluster to address it through.

    Raises `UserError` where there is a TrainJob and this identity may not read it.
    """
    jobset = cluster.through(names.JOBSET).get_jobset(name)
    if jobset is not None and not made_by_trainer(jobset):
        return cluster.through(names.JOBSET), jobset
    trainer = cluster.through(names.TRAINJOB)
    try:
        job = trainer.get_jobset(name)
    except UserError:
        if jobset is not None:
            raise
        return None  # a Role from before may not look for TrainJobs, and then has made none
    return None if job is None else (trainer, job)


def made_by_trainer(jobset: Manifest) -> bool:
    owners = jobset["metadata"].get("ownerReferences") or []
    return any(owner["kind"] == names.TRAINJOB.kind for owner in owners)


def check_kind(cluster: Cluster, name: str) -> None:
    """Raise `UserError` where the run trains already by objects of the other kind."""
    found = find_training(cluster, name)
    if found is not None and found[0].job_api != cluster.job_api:
        raise UserError(
            f"{found[0].job_api.kind} {name} is there already, and cluster.job_api asks for "
            f"a {cluster.job_api.kind}",
            hint="stop it with `eosin cancel`, or set cluster.job_api to what it was made with",
        )


def ensure_runtime(
    cluster: Cluster, manifest: Manifest, *, log: RunLog, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Have the TrainingRuntime there before its TrainJob, as Trainer demands: made now, or found from before.

    One with another spec, or on its way out, is replaced, unless its TrainJob is there: Trainer keeps it as
    long as that one. Raises
    `UserError` where the name is taken by something else or Trainer is not installed.
    """
    name = manifest["metadata"]["name"]
    for _ in range(_ATTEMPTS):
        try:
            cluster.read(
                f"creating TrainingRuntime {name}",
                cluster.custom.create_namespaced_custom_object,
                *_API,
                cluster.namespace,
                names.RUNTIME_PLURAL,
                manifest,
            )
        except AlreadyExists:
            existing = _get_runtime(cluster, name)
        except Missing as error:
            raise not_installed(str(error)) from error
        else:
            log.event("training-runtime-created", runtime=name)
            sleep(_SEEN_S)
            return
        if existing is None:
            continue
        check_ours(existing, manifest)
        going = existing["metadata"].get("deletionTimestamp")
        if cluster.get_jobset(name) is not None or (not going and same_digest(existing, manifest)):
            return
        _delete_runtime(cluster, existing)
        wait_until_gone(
            f"TrainingRuntime {name}",
            existing,
            lambda: _get_runtime(cluster, name),
            timeout_s=_GONE_TIMEOUT_S,
            hint="is a TrainJob left that refers to it?",
            sleep=sleep,
        )
    raise TransientError(f"TrainingRuntime {name} is made and deleted by somebody else at the same time")


def remove_runtime(cluster: Cluster, job: Manifest) -> None:
    """Delete the TrainingRuntime made for TrainJob `job`; a shared one, or of another run, stays.

    Call it before the TrainJob is deleted, so that one who is killed in between finds the TrainJob again;
    Trainer itself keeps a runtime until no TrainJob refers to it.
    """
    runtime = _get_runtime(cluster, job["metadata"]["name"])
    run = (job["metadata"].get("annotations") or {}).get(names.RUN_ANNOTATION, "")
    if runtime is None or not run:
        return
    if (runtime["metadata"].get("annotations") or {}).get(names.RUN_ANNOTATION) == run:
        _delete_runtime(cluster, runtime)


def not_installed(detail: str) -> UserError:
    return UserError(
        f"this cluster has no API of Kubeflow Trainer, or the namespace is missing ({detail})",
        hint="install Kubeflow Trainer 2, or set cluster.job_api to jobset",
    )


def _get_runtime(cluster: Cluster, name: str) -> Manifest | None:
    try:
        return cluster.get_object(*_API, names.RUNTIME_PLURAL, name)
    except Missing:
        return None


def _delete_runtime(cluster: Cluster, runtime: Manifest) -> None:
    """This very one; one that is gone, or another of its name, stays as it is."""
    from kubernetes.client import V1DeleteOptions, V1Preconditions

    if runtime["metadata"].get("deletionTimestamp"):
        return
    name = runtime["metadata"]["name"]
    body = V1DeleteOptions(preconditions=V1Preconditions(uid=runtime["metadata"].get("uid", "")))
    try:
        cluster.read(
            f"deleting TrainingRuntime {name}",
            cluster.custom.delete_namespaced_custom_object,
            *_API,
            cluster.namespace,
            names.RUNTIME_PLURAL,
            name,
            body=body,
        )
    except (Missing, AlreadyExists):  # a failed precondition is a 409
        return
