"""Spot pools as elastic Jobs beside the JobSet, so that Kueue admits, suspends and preempts them alone.

Their agents meet those of the JobSet in one world: the pods carry the JobSet's name, by which its Service
finds them. The JobSet owns the Jobs, so that whatever deletes it takes them along.
"""

import time
from collections.abc import Callable
from functools import partial

from eosin.cluster import names
from eosin.cluster.api import Cluster, Manifest, Missing
from eosin.cluster.jobset import UNLIMITED, agent_job, queue_labels, spot_job_pools
from eosin.cluster.names import JOB, JOBSET
from eosin.cluster.pods import agent_pod
from eosin.cluster.resources import delete_and_wait, ensure, is_being_deleted, owner_uids
from eosin.config import RunConfig
from eosin.config.cluster import NodePoolConfig
from eosin.errors import EosinError
from eosin.observability import RunLog

_GONE_TIMEOUT_S = 300.0


def render_spot_jobs(config: RunConfig, run_uri: str, *, image: str, jobset: Manifest) -> list[Manifest]:
    """A Job for each spot pool where `cluster.spot_as` is elastic-job, else none.

    `jobset` is the one they belong to, rendered or as it is on the cluster: there it owns them, and one that
    was made with other pools, so that it names no such Jobs, gets none.
    """
    jobs = [_job(config, run_uri, pool, image, jobset) for pool in spot_job_pools(config)]
    return [job for job in jobs if job["metadata"]["name"] in spot_job_names(jobset)]


def spot_job_names(jobset: Manifest) -> list[str]:
    """Names of the Jobs that belong to a JobSet."""
    return [name for name in names.annotation(jobset, names.SPOT_JOBS_ANNOTATION).split(",") if name]


def ensure_spot_jobs(
    cluster: Cluster, manifests: list[Manifest], *, log: RunLog, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Have every Job there once: made now, or found from before; one of an earlier JobSet is replaced."""
    for manifest in manifests:
        owner = owner_uids(manifest, JOBSET.kind)
        _, outcome = ensure(
            cluster,
            JOB,
            manifest,
            keep=partial(_is_owned_by, owner),
            replace=lambda job: delete_and_wait(cluster, JOB, job, timeout_s=_GONE_TIMEOUT_S, sleep=sleep),
        )
        log.event(f"spot-job-{outcome}", job=manifest["metadata"]["name"])


def _is_owned_by(owner: list[str], job: Manifest) -> bool:
    return not is_being_deleted(job) and owner_uids(job, JOBSET.kind) == owner


def remove_spot_jobs(cluster: Cluster, jobset: Manifest) -> list[str]:
    """Delete the Jobs that belong to `jobset`, and their pods; returns the names of those that were there.

    Agents that are still Pending when training ends would else take a node and wait for a world.
    """
    removed = []
    for name in spot_job_names(jobset):
        job = cluster.get(JOB, name)
        if job is not None and owner_uids(job, JOBSET.kind) == [jobset["metadata"].get("uid", "")]:
            cluster.delete(JOB, job)
            removed.append(name)
    return removed


def remove_leftovers(jobset_name: str, connect: Callable[[], Cluster], *, log: RunLog) -> None:
    """What a launcher that was killed at the end of training could not remove. Never raises."""
    try:
        cluster = connect()
        jobset = cluster.get(JOBSET, jobset_name)
        removed = remove_spot_jobs(cluster, jobset) if jobset else []
    except (EosinError, Missing) as error:
        log.event("warning", message=f"spot Jobs of {jobset_name} may be left: {error}")
        return
    if removed:
        log.event("spot-jobs-removed", jobs=removed)


def _job(config: RunConfig, run_uri: str, pool: NodePoolConfig, image: str, jobset: Manifest) -> Manifest:
    cluster, metadata = config.cluster, jobset["metadata"]
    name = str(metadata["name"])
    pod = agent_pod(config, run_uri, name, pool, image=image)
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
