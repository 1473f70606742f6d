"""Kueue on a real cluster: preemption, places by topology, and queues whose work another cluster does."""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from eosin.cluster import follow, names
from eosin.cluster import live_state as live_state_module
from eosin.cluster.api import Cluster
from eosin.cluster.finish import cancel_on_cluster
from eosin.cluster.follow import Follower
from eosin.cluster.live_state import live_state
from eosin.cluster.names import JOBSET, jobset_name
from eosin.cluster.pod_logs import PodLogMirror
from eosin.cluster.queue import is_dispatched
from eosin.cluster.training import Submission, submit_training
from eosin.config import load_config
from eosin.errors import UserError
from eosin.observability import RunLog
from eosin.storage import open_store
from tests.support.real_cluster import (
    CHART,
    HOST_IMAGE,
    IMAGE,
    NAMESPACE_LABEL,
    WAIT,
    acting_as,
    apply,
    eventually,
    install_accounts,
    kubectl,
    let_host_image_run,
)

RUN = "s3://bucket/runs/on-a-real-cluster"
NAME = jobset_name(RUN)
WORKLOADS = names.Resource("kueue.x-k8s.io", "v1beta2", "workloads", "Workload")
API = {"apiVersion": "kueue.x-k8s.io/v1beta2"}
RACK = "eosin.dev/test-rack"
POOL = "gpus_per_node: 0, cpu: 1m, memory: 16Mi"


@pytest.fixture(autouse=True)
def run_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bucket is there to look for the run's note in."""
    monkeypatch.setattr(live_state_module, "open_store", lambda uri: open_store(f"file://{tmp_path}"))


@pytest.fixture
def queue(cluster: Cluster) -> Iterator[str]:
    """A LocalQueue q with room for small pods, on a ClusterQueue, flavor and priority class of one name."""
    if "clusterqueues" not in cluster.served(names.Resource("kueue.x-k8s.io", "v1beta2", "x", "x")):
        pytest.skip("this cluster has no Kueue")
    name = f"eosin-test-{secrets.token_hex(3)}"
    apply([
        {**API, "kind": "ResourceFlavor", "metadata": {"name": name}, "spec": {}},
        cluster_queue(name, cluster.namespace),
        {**API, "kind": "LocalQueue", "metadata": {"name": "q", "namespace": cluster.namespace},
         "spec": {"clusterQueue": name}},
        {**API, "kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": 9},
    ])  # fmt: skip
    yield name
    for kind in ("clusterqueue", "resourceflavor", "workloadpriorityclass"):
        kubectl("delete", kind, name, "--wait=false")


def cluster_queue(name: str, namespace: str, **more: Any) -> dict[str, Any]:
    room = [{"name": "cpu", "nominalQuota": "10m"}, {"name": "memory", "nominalQuota": "1Gi"}]
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": name, "resources": room}]}
    spec = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "resourceGroups": [group],
        "preemption": {"withinClusterQueue": "LowerPriority"},
        **more,
    }
    return {**API, "kind": "ClusterQueue", "metadata": {"name": name}, "spec": spec}


@pytest.fixture
def racks(cluster: Cluster) -> Iterator[list[str]]:
    """Two nodes, each in a rack of its own, until the test ends."""
    nodes = [node["metadata"]["name"] for node in cluster.list_nodes()][:2]
    if len(nodes) < 2:
        pytest.skip("one node: there is nothing to choose from")
    for number, node in enumerate(nodes):
        kubectl("label", "node", node, f"{RACK}=rack-{number}", "--overwrite")
    yield nodes
    for node in nodes:
        kubectl("label", "node", node, f"{RACK}-")


def submit(cluster: Cluster, more: str) -> None:
    small = f"image: '{IMAGE}', shm_size: 8Mi, scratch: {{size: 8Mi}}"
    text = f"cluster: {{{small}, {more}}}\ntrain: {{num_microbatches: 64, batch_size: 64}}"
    launcher = acting_as(cluster, "pipeline-runner")
    submit_training(
        launcher, Submission(load_config(text), RUN, IMAGE, None, RunLog("launch"), lambda: False)
    )


def job_of(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"][names.REPLICATED_JOB_LABEL])


def nodes_of(cluster: Cluster, num_pods: dict[str, int]) -> dict[str, set[str]]:
    """Replicated job → nodes, once so many of its pods run."""

    def run() -> dict[str, set[str]] | None:
        there = [pod for pod in cluster.list_pods(NAME) if pod["status"].get("phase") == "Running"]
        nodes = {job: [p["spec"]["nodeName"] for p in there if job_of(p) == job] for job in num_pods}
        full = all(len(nodes[job]) == number for job, number in num_pods.items())
        return {job: set(found) for job, found in nodes.items()} if full else None

    found: dict[str, set[str]] = eventually(f"pods run: {num_pods}", run)
    return found


def jobset(cluster: Cluster) -> dict[str, Any]:
    found = cluster.get(JOBSET, NAME)
    assert found is not None
    return found


def workload(cluster: Cluster) -> dict[str, Any]:
    (found,) = eventually("Kueue makes a Workload", lambda: cluster.list_objects(WORKLOADS))
    return dict(found)


def test_kueue_preempts_a_training_and_gives_it_back(cluster: Cluster, queue: str) -> None:
    submit(cluster, f"queue: q, pools: [{{name: anchor, {POOL}}}, {{name: spot, spot: true, {POOL}}}]")
    nodes_of(cluster, {"anchor": 1})
    apply([_important_job(queue, cluster.namespace)])
    eventually("the training is suspended", lambda: jobset(cluster)["spec"].get("suspend") is True)
    state = live_state(RUN, cluster=cluster)
    assert state is not None and state.state == "Suspended"
    kubectl("delete", "job", "important", "-n", cluster.namespace)
    eventually("it is given back", lambda: jobset(cluster)["spec"].get("suspend") is not True)
    nodes_of(cluster, {"anchor": 1})


@contextmanager
def followed(
    cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Follower, Future[Any]]]:
    """With a launcher that looks every second and has a second's patience; the training ends with it."""
    monkeypatch.setattr(follow, "IDLE_S", 1)
    launcher, store = acting_as(cluster, "pipeline-runner"), open_store(f"file://{folder}")
    follower = Follower(launcher, PodLogMirror(launcher, store), RunLog("launch", store), 1)
    with ThreadPoolExecutor(1) as pool:
        followed = pool.submit(follower.follow, NAME)
        try:
            yield follower, followed
        finally:
            if left := cluster.get(JOBSET, NAME):
                cluster.delete(JOBSET, left)
    assert followed.result() is None, "it followed until the training was gone"


def waits_for(cluster: Cluster) -> str:
    state = live_state(RUN, cluster=cluster)
    return state.waits_for if state else ""


@pytest.mark.parametrize("kind", ["ClusterQueue", "LocalQueue"])
def test_a_queue_that_a_person_holds_is_waited_for_and_said(
    cluster: Cluster,
    queue: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    """Drained while it trains: the run waits past its patience, and trains when the queue is released."""

    def stop(policy: str) -> None:
        where = [queue] if kind == "ClusterQueue" else ["q", "-n", cluster.namespace]
        patch = f'{{"spec": {{"stopPolicy": "{policy}"}}}}'
        kubectl("patch", kind.lower(), *where, "--type=merge", "-p", patch)

    submit(cluster, f"queue: q, pools: [{{name: anchor, {POOL}}}]")
    nodes_of(cluster, {"anchor": 1})
    with followed(cluster, tmp_path, monkeypatch) as (_, launcher):
        stop("HoldAndDrain")
        eventually("the training is suspended", lambda: jobset(cluster)["spec"].get("suspend") is True)
        eventually("it says why", lambda: "held (stopPolicy)" in waits_for(cluster))
        time.sleep(5)  # well past its patience
        assert not launcher.done()
        stop("None")
        nodes_of(cluster, {"anchor": 1})
        assert not launcher.done() and waits_for(cluster) == ""
    assert "held (stopPolicy)" in capsys.readouterr().err, "in the launcher's log too"


def _important_job(priority: str, namespace: str) -> dict[str, Any]:
    labels = {"kueue.x-k8s.io/queue-name": "q", "kueue.x-k8s.io/priority-class": priority}
    container = {
        "name": "c", "image": IMAGE, "command": ["python", "-c", WAIT],
        "resources": {"requests": {"cpu": "9m", "memory": "16Mi"}},
    }  # fmt: skip
    pod = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container]}
    metadata = {"name": "important", "namespace": namespace, "labels": labels}
    spec = {"suspend": True, "template": {"spec": pod}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


@pytest.fixture
def topology(queue: str, racks: list[str]) -> Iterator[str]:
    """The queue's flavor over a topology of racks and hosts."""
    levels = [{"nodeLabel": RACK}, {"nodeLabel": "kubernetes.io/hostname"}]
    kubectl("delete", "resourceflavor", queue, "--wait=false")  # its fields cannot be changed
    kubectl("patch", "resourceflavor", queue, "--type=json", "-p",
            '[{"op": "remove", "path": "/metadata/finalizers"}]')  # fmt: skip
    apply([
        {**API, "kind": "Topology", "metadata": {"name": queue}, "spec": {"levels": levels}},
        {**API, "kind": "ResourceFlavor", "metadata": {"name": queue},
         "spec": {"topologyName": queue, "nodeLabels": {"kubernetes.io/os": "linux"}}},
    ])  # fmt: skip
    yield queue
    kubectl("delete", "topology", queue, "--wait=false")


@pytest.mark.parametrize("kind", ["required", "preferred"])
def test_kueue_keeps_a_pool_in_one_rack(cluster: Cluster, topology: str, kind: str) -> None:
    pool = f"{{name: anchor, min_nodes: 3, max_nodes: 3, {kind}_topology: {RACK}, {POOL}}}"
    submit(cluster, f"queue: q, pools: [{pool}]")
    assert len(nodes_of(cluster, {"anchor": 3})["anchor"]) == 1
    admitted = workload(cluster)["status"]["admission"]["podSetAssignments"]
    (anchor,) = [each for each in admitted if each["name"] == "anchor"]
    assert anchor["topologyAssignment"]["levels"] == ["kubernetes.io/hostname"]


def test_a_level_that_no_topology_has_is_said_and_given_up_on(
    cluster: Cluster, topology: str, tmp_path: Path
) -> None:
    submit(cluster, f"queue: q, pools: [{{name: anchor, required_topology: example.com/block, {POOL}}}]")
    launcher, store = acting_as(cluster, "pipeline-runner"), open_store(f"file://{tmp_path}")
    follower = Follower(launcher, PodLogMirror(launcher, store), RunLog("launch", store), 3)
    with pytest.raises(UserError, match="does not contain the requested level"):
        follower.follow(NAME)


@contextmanager
def dispatched_to(worker: str, queue: str, namespace: str) -> Iterator[None]:
    """The queue's work goes to the cluster of a kubeconfig in the Secret `worker`, by MultiKueue."""
    named = {"apiGroup": "kueue.x-k8s.io", "kind": "MultiKueueConfig", "name": queue}
    kinds = {
        "MultiKueueCluster": {"clusterSource": {"kubeConfig": {"location": worker}}},
        "MultiKueueConfig": {"clusters": [queue]},
        "AdmissionCheck": {"controllerName": "kueue.x-k8s.io/multikueue", "parameters": named},
    }
    checks = {"admissionChecksStrategy": {"admissionChecks": [{"name": queue}]}}
    made = [{**API, "kind": kind, "metadata": {"name": queue}, "spec": spec} for kind, spec in kinds.items()]
    try:
        apply([*made, cluster_queue(queue, namespace, **checks)])
        yield
    finally:
        for kind in kinds:
            kubectl("delete", kind.lower(), queue, "--wait=false")


def test_multikueue_is_accepted_and_what_it_lacks_is_said(
    cluster: Cluster, queue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manager without a worker in reach: the launcher makes what is dispatched, and says why it waits."""
    kubectl("apply", "--dry-run=server", "-f", str(CHART.parents[1] / "manifests/multikueue/manager.yaml"))
    with dispatched_to(queue, queue, cluster.namespace):
        submit(cluster, f"queue: q, pools: [{{name: anchor, {POOL}}}]")
        assert is_dispatched(jobset(cluster))
        with followed(cluster, tmp_path, monkeypatch) as (follower, _):
            eventually("it says why", lambda: f"ClusterQueue {queue} is inactive" in waits_for(cluster))
            last = eventually("it is followed", lambda: follower.last)
            assert names.FOLLOWED_ANNOTATION not in last["metadata"]["annotations"]


@pytest.fixture
def worker(cluster: Cluster, queue: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """kubectl on a second cluster with the namespace, accounts and queue of the first; the manager has its
    kubeconfig in a Secret of the queue's name."""
    kubeconfig = os.environ.get("EOSIN_TEST_WORKER_KUBECONFIG", "")
    if not kubeconfig:
        pytest.skip("EOSIN_TEST_WORKER_KUBECONFIG names no second cluster, as Kueue of the first reaches it")
    name = cluster.namespace
    about = {"name": name, "labels": {NAMESPACE_LABEL: "true"}}
    with monkeypatch.context() as there:
        there.setenv("KUBECONFIG", kubeconfig)
        if IMAGE == HOST_IMAGE:
            let_host_image_run(cluster)
        apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": about}])
        install_accounts(cluster)
        apply([{**API, "kind": "ResourceFlavor", "metadata": {"name": queue}, "spec": {}},
               cluster_queue(queue, name),
               {**API, "kind": "LocalQueue", "metadata": {"name": "q", "namespace": name},
                "spec": {"clusterQueue": queue}}])  # fmt: skip
    secret = ("secret", "generic", queue, "-n", "kueue-system")
    kubectl("create", *secret, f"--from-file=kubeconfig={kubeconfig}")
    yield lambda *arguments: kubectl("--kubeconfig", kubeconfig, *arguments)
    kubectl("delete", "secret", queue, "-n", "kueue-system")
    for kind, left in (("namespace", name), ("clusterqueue", queue), ("resourceflavor", queue)):
        kubectl("--kubeconfig", kubeconfig, "delete", kind, left, "--wait=false")


def test_multikueue_has_a_worker_train_and_ends_it_there(
    cluster: Cluster, queue: str, worker: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two real clusters: pods are on the worker alone; the manager's JobSet tells how they are."""

    def on_worker(kind: str) -> list[dict[str, Any]]:
        return list(json.loads(worker("get", kind, "-n", cluster.namespace, "-o", "json"))["items"])

    def trains() -> bool:
        running = [p for p in on_worker("pods") if p["status"].get("phase") == "Running"]
        return {job_of(pod) for pod in running} == {"rdzv", "anchor"}

    def ready() -> dict[str, int]:
        jobs = jobset(cluster).get("status", {}).get("replicatedJobsStatus") or []
        return {job["name"]: job["ready"] for job in jobs}

    with dispatched_to(queue, queue, cluster.namespace):
        submit(cluster, f"queue: q, pools: [{{name: anchor, {POOL}}}]")
        with followed(cluster, tmp_path, monkeypatch) as (_, launcher):
            eventually("the worker trains", trains)
            eventually("the manager knows", lambda: ready() == {"rdzv": 1, "anchor": 1})
            assert cluster.list_pods(NAME) == [] and waits_for(cluster) == "" and not launcher.done()
            cancel_on_cluster(RUN, cluster)
            eventually("it is ended there", lambda: on_worker("jobsets") == on_worker("pods") == [])


def test_an_exclusive_pool_has_a_rack_for_itself(cluster: Cluster, racks: list[str]) -> None:
    """Not even the rendezvous pod, or another pool, comes there."""
    anchor = f"{{name: anchor, min_nodes: 2, max_nodes: 2, exclusive_topology: {RACK}, {POOL}}}"
    submit(cluster, f"pools: [{anchor}, {{name: more, max_nodes: 2, {POOL}}}]")
    nodes = nodes_of(cluster, {"anchor": 2, "more": 2, "rdzv": 1})
    assert len(nodes["anchor"]) == 1 and nodes["anchor"].isdisjoint(nodes["more"] | nodes["rdzv"])
