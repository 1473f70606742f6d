"""Put a JobSet on the cluster once: adopt the one that is there, replace one that has failed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable

from eosin.cluster import names
from eosin.cluster.api import AlreadyExists, Cluster, Manifest, Missing
from eosin.cluster.spotjobs import remove_spot_jobs
from eosin.errors import TransientError, UserError
from eosin.observability import RunLog

_SPEC_ANNOTATION = "eosin.dev/spec-digest"
_GONE_TIMEOUT_S = 600
_POLL_S = 2.0
_ATTEMPTS = 5


def create_or_adopt(
    cluster: Cluster,
    manifest: Manifest,
    *,
    log: RunLog,
    is_done: Callable[[], bool],
    sleep: Callable[[float], None] = time.sleep,
) -> Manifest:
    """The JobSet of `manifest`'s name: made now, or found from before.

    One that has ended without a result (`is_done` asks the bucket) belongs to an attempt before this
    one: it is deleted and made anew, and training goes on from its last checkpoint. Raises
    `UserError` where the name belongs to something else or JobSet is not installed.
    """
    manifest = _with_digest(manifest)
    name = manifest["metadata"]["name"]
    for _ in range(_ATTEMPTS):
        try:
            created = cluster.create_jobset(manifest)
        except AlreadyExists:
            existing = cluster.get_jobset(name)
        except Missing as error:
            raise _not_installed(str(error)) from error
        else:
            log.event("jobset-created", jobset=name, namespace=cluster.namespace)
            return created
        if existing is None:
            continue
        _check_ours(existing, manifest)
        if _is_live(existing) or (terminal_state(existing) == "Completed" and is_done()):
            log.event("jobset-adopted", jobset=name, **_placement_note(existing, manifest))
            return existing
        log.event("jobset-replaced", jobset=name, ended=terminal_state(existing) or "being deleted")
        delete_and_wait(cluster, existing, sleep=sleep)
    raise TransientError(f"JobSet {name} is made and deleted by somebody else at the same time")


def delete_and_wait(
    cluster: Cluster, jobset: Manifest, *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Delete this very JobSet, with the Jobs that belong to it, and wait until it and its pods are gone."""
    remove_spot_jobs(cluster, jobset)
    name, uid = jobset["metadata"]["name"], jobset["metadata"].get("uid", "")
    if not jobset["metadata"].get("deletionTimestamp"):
        cluster.delete_jobset(name, uid)
    for _ in range(int(_GONE_TIMEOUT_S / _POLL_S)):
        left = cluster.get_jobset(name)
        if left is None or left["metadata"].get("uid", "") != uid:
            return
        sleep(_POLL_S)
    raise TransientError(
        f"JobSet {name} is still being deleted after {_GONE_TIMEOUT_S} s",
        hint=f"look for pods on lost nodes: kubectl -n {cluster.namespace} get pods -o wide",
    )


def terminal_state(jobset: Manifest) -> str:
    """`Completed`, `Failed`, or empty while it lives."""
    status = jobset.get("status") or {}
    if status.get("terminalState"):
        return str(status["terminalState"])
    for condition in status.get("conditions") or []:
        if condition["type"] in {"Completed", "Failed"} and condition["status"] == "True":
            return str(condition["type"])
    return ""


def _is_live(jobset: Manifest) -> bool:
    return not terminal_state(jobset) and not jobset["metadata"].get("deletionTimestamp")


def _with_digest(manifest: Manifest) -> Manifest:
    text = json.dumps(manifest["spec"], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), _SPEC_ANNOTATION: digest}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def _check_ours(existing: Manifest, wanted: Manifest) -> None:
    run = wanted["metadata"]["annotations"][names.RUN_ANNOTATION]
    found = existing["metadata"].get("annotations", {}).get(names.RUN_ANNOTATION)
    if found != run:
        name = existing["metadata"]["name"]
        raise UserError(
            f"JobSet {name} is there already and belongs to {found or 'something else'}",
            hint=f"delete it, or take another run URI than {run}",
        )


def _placement_note(existing: Manifest, wanted: Manifest) -> dict[str, str]:
    """A hint where the one running was made with other nodes, images or limits than asked for now."""
    before = existing["metadata"].get("annotations", {}).get(_SPEC_ANNOTATION)
    if before == wanted["metadata"]["annotations"][_SPEC_ANNOTATION]:
        return {}
    return {"note": "it runs with the placement it was made with; delete it to apply the changed one"}


def _not_installed(detail: str) -> UserError:
    return UserError(
        f"this cluster has no JobSet API, or the namespace is missing ({detail})",
        hint="install the prerequisites: kubectl apply --server-side -k manifests/prerequisites",
    )
