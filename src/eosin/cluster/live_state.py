"""State of a run's training as its cluster shows it now."""

from __future__ import annotations

from dataclasses import dataclass

from eosin.cluster.api import Cluster, connect
from eosin.cluster.follow import phases
from eosin.cluster.names import JOBSET, jobset_name
from eosin.cluster.training import terminal_state
from eosin.layout import RunLayout
from eosin.records import KubeflowRun, load_record
from eosin.runs import load_run
from eosin.storage import open_store


@dataclass(frozen=True)
class LiveState:
    """What a cluster says about a run's training now."""

    jobset: str
    state: str
    """Running, Suspended, Completed or Failed."""
    restarts: int
    pods: dict[str, dict[str, int]]
    """Pool → phase → number of pods."""

    def __str__(self) -> str:
        pools = (
            f"{pool} {', '.join(f'{number} {phase.lower()}' for phase, number in sorted(each.items()))}"
            for pool, each in sorted(self.pods.items())
        )
        restarts = f", {self.restarts} restarts" if self.restarts else ""
        return " · ".join([f"JobSet {self.jobset}: {self.state.lower()}{restarts}", *pools])


def live_state(
    run_uri: str, *, namespace: str = "", context: str = "", cluster: Cluster | None = None
) -> LiveState | None:
    """The run's JobSet as the cluster shows it, if there is one. Every call is tried once."""
    cluster = cluster or _connect(run_uri, namespace, context)
    job = cluster.get(JOBSET, jobset_name(run_uri))
    if job is None:
        return None
    suspended = job["spec"].get("suspend") is True
    state = terminal_state(job) or ("Suspended" if suspended else "Running")
    restarts = int((job.get("status") or {}).get("restarts", 0))
    pods = phases(cluster.list_pods(job["metadata"]["name"]))
    return LiveState(job["metadata"]["name"], state, restarts, pods)


def _connect(run_uri: str, namespace: str, context: str) -> Cluster:
    place = load_record(KubeflowRun, open_store(run_uri), RunLayout.KUBEFLOW_RUN)
    namespace = namespace or (place.namespace if place else "") or load_run(run_uri).cluster.namespace
    return connect(namespace, context=context, attempts=1)
