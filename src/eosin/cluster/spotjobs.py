"""Spot pools as elastic Jobs beside the JobSet, so that Kueue admits, suspends and preempts them alone.

Their agents meet those of the JobSet in one world: the pods carry the JobSet's name, by which its Service
finds them. The JobSet owns the Jobs, so that whatever deletes it takes them along.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from eosin.cluster import names
from eosin.cluster.api import AlreadyExists, Cluster, Manifest, Missing
from eosin.cluster.gone import wait_until_gone
from eosin.cluster.jobset import UNLIMITED, agent_job, queue_labels, spot_job_pools
from eosin.cluster.ours import check_ours
from eosin.cluster.pods import agent_pod
from eosin.config import RunConfig
from eosin.config.cluster import NodePoolConfig
from eosin.errors import EosinError, TransientError
from eosin.observability import RunLog

_GONE_TIMEOUT_S = 300.0
_ATTEMPTS = 5


def render_spot_jobs(
    config: RunConfig, run_uri: str, *, image: str, service_account: str = "", jobset: Manifest
) -> list[Manifest]:
    """A Job for each spot pool where `cluster.spot_as` is elastic-job, else none.

    `jobset` is the one they belong to, rendered or as it is on the cluster: there it owns them, and one that
    was made with other pools, so that it names no such Jobs, gets none.
    """
    account = service_account or config.cluster.service_account
    jobs = [_job(config, run_uri, pool, image, account, jobset) for pool in spot_job_pools(config)]
    return [job for job in jobs if job["metadata"]["name"] in spot_job_names(jobset)]


def spot_job_names(jobset: Manifest) -> list[str]:
    """Names of the Jobs that belong to a JobSet."""
    named = (jobset["metadata"].get("annotations") or {}).get(names.SPOT_JOBS_ANNOTATION, "")
    return [name for name in named.split(",") if name]


def ensure_spot_jobs(
    cluster: Cluster, manifests: list[Manifest], *, log: RunLog, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Have every Job there once: made now, or found from before; one of an earlier JobSet is replaced."""
    for manifest in manifests:
        _ensure(cluster, manifest, log, sleep)


def remove_spot_jobs(cluster: Cluster, jobset: Manifest) -> list[str]:
    """Delete the Jobs that belong to `jobset`, and their pods; returns the names of those that were there.

    Agents that are still Pending when training ends would else take a node and wait for a world.
    """
    removed = []
    for name in spot_job_names(jobset):
        job = _get(cluster, name)
        if job is not None and _owner_uid(job) == jobset["metadata"].get("uid", ""):
            _delete(cluster, job)
            removed.append(name)
    return removed


def remove_leftovers(jobset_name: str, connect: Callable[[], Cluster], *, log: RunLog) -> None:
    """What a launcher that was killed at the end of training could not remove. Never raises."""
    try:
        cluster = connect()
        jobset = cluster.get_jobset(jobset_name)
        removed = remove_spot_jobs(cluster, jobset) if jobset else []
    except (EosinError, Missing) as error:
        log.event("warning", message=f"spot Jobs of {jobset_name} may be left: {error}")
        return
    if removed:
        log.event("spot-jobs-removed", jobs=removed)


def _job(
    config: RunConfig, run_uri: str, pool: NodePoolConfig, image: str, service_account: str, jobset: Manifest
) -> Manifest:
    cluster, metadata = config.cluster, jobset["metadata"]
    name = str(metadata["name"])
    pod = agent_pod(config, run_uri, name, pool, image=image, service_account=service_account)
    pod["metadata"]["labels"] |= {
        names.JOBSET_NAME_LABEL: name,
        names.REPLICATED_JOB_LABEL: pool.name,
        # No attempt of the JobSet is known here; the label is there because the pod's variables name it.
        names.RESTART_ATTEMPT_LABEL: "0",
    }
    # With the host name that an indexed Job gives: what JobSet does for the pods of its own.
    pod["spec"]["subdomain"] = name
    owned: Manifest = {
        "name": f"{name}-{pool.name}",
        "namespace": metadata["namespace"],
        "labels": names.labels(name) | queue_labels(cluster.queue, cluster.spot_queue_priority_class),
        "annotations": {names.RUN_ANNOTATION: run_uri, names.ELASTIC_ANNOTATION: "true"},
    }
    if metadata.get("uid"):
        # Not its controller: Kueue would count the Job as a part of the JobSet's workload.
        owner = names.OwnerReference(jobset["apiVersion"], "JobSet", name, metadata["uid"])
        owned["ownerReferences"] = [owner.manifest()]
    spec = agent_job(pod, pool.max_nodes, UNLIMITED)
    if cluster.ttl_s is not None:
        spec["ttlSecondsAfterFinished"] = cluster.ttl_s
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": owned, "spec": spec}


def _ensure(cluster: Cluster, manifest: Manifest, log: RunLog, sleep: Callable[[float], None]) -> None:
    name = manifest["metadata"]["name"]
    for _ in range(_ATTEMPTS):
        try:
            _call(cluster, "create", f"creating Job {name}", manifest)
        except AlreadyExists:
            existing = _get(cluster, name)
        else:
            log.event("spot-job-created", job=name)
            return
        if existing is None:
            continue
        check_ours(existing, manifest)
        going = not existing["metadata"].get("deletionTimestamp")
        if going and _owner_uid(existing) == _owner_uid(manifest):
            log.event("spot-job-adopted", job=name)
            return
        _delete(cluster, existing)
        wait_until_gone(
            f"Job {name}",
            existing,
            lambda: _get(cluster, name),
            timeout_s=_GONE_TIMEOUT_S,
            hint=f"look for pods on lost nodes: kubectl -n {cluster.namespace} get pods -o wide",
            sleep=sleep,
        )
    raise TransientError(f"Job {name} is made and deleted by somebody else at the same time")


def _get(cluster: Cluster, name: str) -> Manifest | None:
    try:
        return _call(cluster, "read", f"reading Job {name}", name)
    except Missing:
        return None


def _delete(cluster: Cluster, job: Manifest) -> None:
    """This very Job and its pods; one that is gone, or another of its name, stays as it is."""
    from kubernetes.client import V1DeleteOptions, V1Preconditions

    name = job["metadata"]["name"]
    precondition = V1Preconditions(uid=job["metadata"].get("uid", ""))
    body = V1DeleteOptions(propagation_policy="Background", preconditions=precondition)
    try:
        _call(cluster, "delete", f"deleting Job {name}", name, body=body)
    except (Missing, AlreadyExists):  # a failed precondition is a 409
        return


def _call(cluster: Cluster, verb: str, doing: str, subject: Any, **more: Any) -> Manifest:
    """One call of the batch API: (name, namespace), or (namespace, body) where something is made."""
    from kubernetes.client import BatchV1Api

    function = getattr(BatchV1Api(cluster.core.api_client), f"{verb}_namespaced_job")
    where = (cluster.namespace, subject) if verb == "create" else (subject, cluster.namespace)
    return cluster.read(doing, function, *where, **more)


def _owner_uid(job: Manifest) -> str:
    owners = job["metadata"].get("ownerReferences") or []
    return next((str(owner["uid"]) for owner in owners if owner["kind"] == "JobSet"), "")
