"""Kueue's word on a training that waits: its Workload says why."""

from collections.abc import Iterator

from eosin.cluster.api import Cluster, Manifest, Missing
from eosin.cluster.names import Resource, owners

_VERSIONS = ("v1beta2", "v1beta1")
GROUP = "kueue.x-k8s.io"
_MULTIKUEUE = "kueue.x-k8s.io/multikueue"
# Of Kueue's messages: what no patience mends.
_NO_WORKLOAD = "Kueue has made no Workload of it"
_NEVER = (
    "doesn't exist",
    "does not exist",
    "not found",
    "doesn't match",
    "does not contain the requested level",
    "maximum capacity",
    "untolerated taint",
    "unavailable in ClusterQueue",
    _NO_WORKLOAD,
)
# A person has stopped it, or has yet to complete it: the training waits, without a GPU, until that is undone.
_INACTIVE = "is inactive"
# Of a flavor that is only in use: whatever another one lacks, this one may come free.
_PASSES = "insufficient unused quota"


def local_queue(cluster: Cluster, name: str) -> Manifest | None:
    """The LocalQueue of that name in the namespace. Raises `UserError` where it may not be read."""
    for version in _VERSIONS:
        found = cluster.get(Resource(GROUP, version, "localqueues", "LocalQueue"), name)
        if found is not None:
            return found
    return None


def why_it_waits(cluster: Cluster, job: Manifest) -> str:
    """What Kueue says of the Workload of `job`, or that it has made none; empty where it is admitted.

    Raises `UserError` where this identity may not read Workloads.
    """
    uid = job["metadata"].get("uid", "")
    for workload in _workloads(cluster):
        if uid and any(owner["uid"] == uid for owner in owners(workload)):
            return _waits_for(workload)
    named = sorted(set(_classes(job)))
    return f"{_NO_WORKLOAD}: does it run, and is there {' and '.join(named) or 'its queue'}?"


def _classes(job: Manifest) -> Iterator[str]:
    """Of priority, that it names: without any of them Kueue makes no Workload and says so in its own log."""
    if kueues := (job["metadata"].get("labels") or {}).get("kueue.x-k8s.io/priority-class"):
        yield f"WorkloadPriorityClass {kueues}"
    for each in job["spec"].get("replicatedJobs") or []:
        if name := each["template"]["spec"]["template"]["spec"].get("priorityClassName"):
            yield f"PriorityClass {name}"


def is_dispatched(jobset: Manifest) -> bool:
    """Whether MultiKueue has another cluster do its work: the pods are there, and here only its status."""
    return bool(jobset["spec"].get("managedBy") == _MULTIKUEUE)


def never_mends(message: str) -> bool:
    """Whether such a wait has no end unless a person does something."""
    return _PASSES not in message and any(part in message for part in _NEVER)


def _workloads(cluster: Cluster) -> Iterator[Manifest]:
    for version in _VERSIONS:
        try:
            yield from cluster.list_objects(Resource(GROUP, version, "workloads", "Workload"))
        except Missing:
            continue
        return


def _waits_for(workload: Manifest) -> str:
    status = workload.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition["type"] == "QuotaReserved" and condition["status"] != "True":
            message = str(condition.get("message") or condition.get("reason", ""))
            held = "; it is held (stopPolicy) or incomplete, and the training waits for whoever keeps it"
            return message + (held if message.endswith(_INACTIVE) else "")
    checks = [each for each in status.get("admissionChecks") or [] if each.get("state") != "Ready"]
    return "; ".join(f"{each['name']}: {each.get('message') or each.get('state')}" for each in checks)
