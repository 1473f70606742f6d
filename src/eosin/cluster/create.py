"""Put a JobSet, or a TrainJob, on the cluster once: adopt the one there, replace one that has failed."""

from __future__ import annotations

import time
from collections.abc import Callable

from eosin.cluster import names
from eosin.cluster.api import AlreadyExists, Cluster, Manifest, Missing
from eosin.cluster.gone import wait_until_gone
from eosin.cluster.ours import check_ours, same_digest, with_digest
from eosin.cluster.spotjobs import remove_spot_jobs
from eosin.cluster.trainer import not_installed, remove_runtime
from eosin.errors import TransientError, UserError
from eosin.observability import RunLog

_GONE_TIMEOUT_S = 600.0
_ATTEMPTS = 5
# A TrainJob is Complete where a JobSet is Completed.
_ENDS = {"Completed": "Completed", "Complete": "Completed", "Failed": "Failed"}


def create_or_adopt(
    cluster: Cluster,
    manifest: Manifest,
    *,
    log: RunLog,
    is_done: Callable[[], bool],
    prepare: Callable[[], None] = lambda: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Manifest:
    """The JobSet of `manifest`'s name: made now, or found from before. `prepare` makes what it refers to.

    One that has ended without a result (`is_done` asks the bucket) belongs to an attempt before this
    one: it is deleted and made anew, and training goes on from its last checkpoint. Raises
    `UserError` where the name belongs to something else or JobSet is not installed.
    """
    manifest = with_digest(manifest)
    name = manifest["metadata"]["name"]
    for _ in range(_ATTEMPTS):
        prepare()
        try:
            created = cluster.create_jobset(manifest)
        except AlreadyExists:
            existing = cluster.get_jobset(name)
        except Missing as error:
            raise _not_installed(cluster, str(error)) from error
        else:
            log.event("jobset-created", jobset=name, namespace=cluster.namespace)
            return created
        if existing is None:
            continue
        check_ours(existing, manifest)
        if _is_live(existing) or (terminal_state(existing) == "Completed" and is_done()):
            log.event("jobset-adopted", jobset=name, **_placement_note(existing, manifest))
            return existing
        log.event("jobset-replaced", jobset=name, ended=terminal_state(existing) or "being deleted")
        delete_and_wait(cluster, existing, sleep=sleep)
    raise TransientError(f"{manifest['kind']} {name} is made and deleted by somebody else at the same time")


def delete_and_wait(
    cluster: Cluster, jobset: Manifest, *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Delete this very JobSet, with the Jobs that belong to it, and wait until it and its pods are gone."""
    delete(cluster, jobset)
    name = jobset["metadata"]["name"]
    wait_until_gone(
        f"{cluster.job_api.kind} {name}",
        jobset,
        lambda: cluster.get_jobset(name),
        timeout_s=_GONE_TIMEOUT_S,
        hint=f"look for pods on lost nodes: kubectl -n {cluster.namespace} get pods -o wide",
        sleep=sleep,
    )


def delete(cluster: Cluster, jobset: Manifest) -> None:
    """Ask for the end of this very JobSet and of what was made beside it, without waiting."""
    remove_spot_jobs(cluster, jobset)
    if cluster.job_api == names.TRAINJOB:
        remove_runtime(cluster, jobset)
    if not jobset["metadata"].get("deletionTimestamp"):
        cluster.delete_jobset(jobset["metadata"]["name"], jobset["metadata"].get("uid", ""))


def terminal_state(jobset: Manifest) -> str:
    """`Completed`, `Failed`, or empty while it lives."""
    status = jobset.get("status") or {}
    if status.get("terminalState"):
        return str(status["terminalState"])
    for condition in status.get("conditions") or []:
        if condition["type"] in _ENDS and condition["status"] == "True":
            return _ENDS[condition["type"]]
    return ""


def _is_live(jobset: Manifest) -> bool:
    return not terminal_state(jobset) and not jobset["metadata"].get("deletionTimestamp")


def _placement_note(existing: Manifest, wanted: Manifest) -> dict[str, str]:
    """A hint where the one running was made with other nodes, images or limits than asked for now."""
    if same_digest(existing, wanted):
        return {}
    return {"note": "it runs with the placement it was made with; delete it to apply the changed one"}


def _not_installed(cluster: Cluster, detail: str) -> UserError:
    if cluster.job_api == names.TRAINJOB:
        return not_installed(detail)
    return UserError(
        f"this cluster has no JobSet API, or the namespace is missing ({detail})",
        hint="install the prerequisites: kubectl apply --server-side -k manifests/prerequisites",
    )
