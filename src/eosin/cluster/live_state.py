"""State of a run's training as its cluster shows it now, and the runs that train in a namespace.

`python -m eosin.cluster.live_state` fails, with their names, while any does.
"""

import contextlib
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from shlex import quote

from eosin.cluster.api import Cluster, Manifest, Missing, connect
from eosin.cluster.failure import stuck_pods
from eosin.cluster.follow import phases
from eosin.cluster.names import JOBSET, MANAGED_BY, RUN_ID_LABEL, WORKFLOW, WORKFLOW_LABEL, jobset_name
from eosin.cluster.queue import why_it_waits
from eosin.cluster.resources import is_being_deleted, run_of
from eosin.cluster.training import terminal_state
from eosin.errors import EosinError, UserError, describe, exit_code_of
from eosin.layout import RunLayout
from eosin.records import KubeflowRun, load_record
from eosin.runs import load_run
from eosin.storage import open_store

_PATIENCE_S = 60.0


@dataclass(frozen=True)
class LiveState:
    """What a cluster says about a run's training, and about pods of its steps, now."""

    jobset: str
    """Empty: nothing trains."""
    state: str
    """Running, Suspended, Completed or Failed."""
    restarts: int
    pods: dict[str, dict[str, int]]
    """Pool → phase → number of pods."""
    stuck: dict[str, str] = field(default_factory=dict)
    """Pod, of training or of a step → why it does not start, or does not end, for a minute."""
    waits_for: str = ""
    """Of a suspended training: what Kueue says it waits for."""

    def __str__(self) -> str:
        pools = (
            f"{pool} {', '.join(f'{number} {phase.lower()}' for phase, number in sorted(each.items()))}"
            for pool, each in sorted(self.pods.items())
        )
        restarts = f", {self.restarts} restarts" if self.restarts else ""
        waits = f": {self.waits_for}" if self.waits_for else ""
        training = [f"JobSet {self.jobset}: {self.state.lower()}{restarts}{waits}", *pools]
        stuck = [f"pod {pod}: {why}" for pod, why in sorted(self.stuck.items())]
        return "\n              ".join([*([" · ".join(training)] if self.jobset else []), *stuck])


def live_state(
    run_uri: str, *, namespace: str = "", context: str = "", cluster: Cluster | None = None
) -> LiveState | None:
    """The run's JobSet as the cluster shows it, and pods that cannot start; None: neither is there.

    Every call is tried once.
    """
    place = load_record(KubeflowRun, open_store(run_uri), RunLayout.KUBEFLOW_RUN)
    if cluster is None:
        namespace = namespace or (place.namespace if place else "") or load_run(run_uri).cluster.namespace
        cluster = connect(namespace, context=context, attempts=1)
    job, pods = cluster.get(JOBSET, jobset_name(run_uri)), _pods_of_steps(cluster, place)
    if job is None:
        stuck = _stuck(pods)
        return LiveState("", "", 0, {}, stuck) if stuck else None
    name = job["metadata"]["name"]
    agents = cluster.list_pods(name)
    suspended = job["spec"].get("suspend") is True
    state = terminal_state(job) or ("Suspended" if suspended else "Running")
    restarts = int((job.get("status") or {}).get("restarts", 0))
    waits_for = ""
    if state == "Suspended":
        with contextlib.suppress(UserError):  # who may not look is not told
            waits_for = why_it_waits(cluster, job)
    return LiveState(name, state, restarts, phases(agents), _stuck([*agents, *pods]), waits_for)


def _pods_of_steps(cluster: Cluster, place: KubeflowRun | None) -> list[Manifest]:
    """Pods of the run's Workflow; none where it is not known, or may not be looked at."""
    if place is None:
        return []
    workflow = place.workflow
    try:
        if not workflow and place.run_id:
            found = cluster.list_objects(WORKFLOW, f"{RUN_ID_LABEL}={place.run_id}")
            workflow = found[0]["metadata"]["name"] if found else ""
        return cluster.list_labelled_pods(f"{WORKFLOW_LABEL}={workflow}") if workflow else []
    except (Missing, UserError):
        return []


def _stuck(pods: list[Manifest]) -> dict[str, str]:
    """What stands still for a minute: until then an image may still come, a pod end."""
    now = datetime.now(UTC)
    old = [pod for pod in pods if _since(pod, "creationTimestamp", now) >= _PATIENCE_S]
    # A deletion's time is when its grace ends.
    lost = [pod for pod in pods if _since(pod, "deletionTimestamp", now) >= _PATIENCE_S]
    return stuck_pods(old) | {pod["metadata"]["name"]: _lost(pod) for pod in lost}


def _lost(pod: Manifest) -> str:
    node = pod["spec"].get("nodeName", "NODE")
    return (
        f"its node {node} does not end it, so it is not replaced. If the node is off for good: "
        f"kubectl taint node {node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
    )


def _since(pod: Manifest, stamp: str, now: datetime) -> float:
    """Seconds since a time of its metadata; 0 where it has none."""
    given = pod["metadata"].get(stamp)
    return (now - datetime.fromisoformat(given)).total_seconds() if given else 0.0


def live_runs(cluster: Cluster) -> list[str]:
    """URIs of the runs that train in the namespace, in order. Raises `UserError` where it may not look."""
    try:
        found = cluster.list_objects(JOBSET, f"{MANAGED_BY}=eosin")
    except Missing:  # JobSet was removed before
        return []
    return sorted(run_of(job) for job in found if not terminal_state(job) and not is_being_deleted(job))


def main() -> int:
    """Guard of `helm uninstall`, whose accounts pods need: 0 where nothing trains, else 1, with the runs."""
    code = 0
    try:
        for run in live_runs(connect()):
            code = 1
            print(
                f"error: {run} trains with the accounts of this release: eosin cancel {quote(run)}",
                file=sys.stderr,
            )
    except EosinError as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        code = exit_code_of(error)
    if code:
        print("to uninstall all the same: helm uninstall --no-hooks", file=sys.stderr)
        print("to keep the release, which Helm now calls uninstalling: helm rollback", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
