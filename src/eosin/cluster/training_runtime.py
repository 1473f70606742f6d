"""The TrainingRuntime of Kubeflow Trainer that a run's TrainJob refers to."""

from __future__ import annotations

import time
from collections.abc import Callable

from eosin.cluster.api import Cluster, Manifest, Missing
from eosin.cluster.names import RUNTIME, TRAINJOB
from eosin.cluster.resources import delete_and_wait, ensure, is_being_deleted, run_of, same_digest
from eosin.errors import UserError
from eosin.observability import RunLog

_GONE_TIMEOUT_S = 300.0
# Trainer refuses a TrainJob whose runtime its own cache does not hold yet.
_SEEN_S = 1.0


def ensure_runtime(
    cluster: Cluster, manifest: Manifest, *, log: RunLog, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Have the TrainingRuntime there before its TrainJob, as Trainer demands: made now, or found from before.

    One with another spec, or on its way out, is replaced, unless its TrainJob is there, which needs it.
    Raises `UserError` where the name is taken by something else or Trainer is not installed.
    """
    name = manifest["metadata"]["name"]

    def keep(existing: Manifest) -> bool:
        current = not is_being_deleted(existing) and same_digest(existing, manifest)
        return current or cluster.get(TRAINJOB, name) is not None

    def replace(existing: Manifest) -> None:
        delete_and_wait(
            cluster, RUNTIME, existing,
            timeout_s=_GONE_TIMEOUT_S, hint="is a TrainJob left that refers to it?", sleep=sleep,
        )  # fmt: skip

    try:
        _, outcome = ensure(cluster, RUNTIME, manifest, keep=keep, replace=replace)
    except Missing as error:
        raise trainer_not_installed(str(error)) from error
    if outcome == "created":
        log.event("training-runtime-created", runtime=name)
        sleep(_SEEN_S)


def remove_runtime(cluster: Cluster, job: Manifest) -> None:
    """Delete the TrainingRuntime made for TrainJob `job`; a shared one, or of another run, stays.

    Call it when the TrainJob is gone: Trainer's webhook refuses every update of a TrainJob whose runtime is
    missing, that of the garbage collector too, so that neither would ever go.
    """
    runtime = cluster.get(RUNTIME, job["metadata"]["name"])
    if runtime is not None and run_of(job) and run_of(runtime) == run_of(job):
        cluster.delete(RUNTIME, runtime)


def trainer_not_installed(detail: str) -> UserError:
    """The error of a cluster that does not know TrainJobs."""
    return UserError(
        f"this cluster has no API of Kubeflow Trainer, or the namespace is missing ({detail})",
        hint="install Kubeflow Trainer 2, or set cluster.job_api to jobset",
    )
