"""What happens to the pods of a training, on real nodes: loss, eviction, restarts, failures, preemption."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from eosin.cluster import live_state as live_state_module
from eosin.cluster import names
from eosin.cluster.api import Cluster, Missing
from eosin.cluster.failure import explain_failure
from eosin.cluster.jobset import render_jobset
from eosin.cluster.live_state import live_state
from eosin.cluster.training import terminal_state
from eosin.config import RunConfig, load_config
from eosin.errors import PermanentError, UserError
from eosin.storage import open_store
from tests.support.real_cluster import (
    IMAGE,
    WAIT,
    acting_as,
    eventually,
    kubectl,
    only_agents,
    waiting,
)

RUN = "s3://bucket/runs/on-a-real-cluster"
NAME = names.jobset_name(RUN)
ONE_POOL = "pools: [{name: anchor, gpus_per_node: 0}]"
SPOT = "eosin.dev/test-spot"
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
TWO_POOLS = "pools: [{name: anchor, gpus_per_node: 0}, {name: spot, spot: true, gpus_per_node: 0}]"


@pytest.fixture(autouse=True)
def run_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bucket is there to look for the run's note in."""
    monkeypatch.setattr(live_state_module, "open_store", lambda uri: open_store(f"file://{tmp_path}"))


def config(more: str) -> RunConfig:
    small = f"image: '{IMAGE}', shm_size: 8Mi, scratch: {{size: 8Mi}}"
    return load_config(f"cluster: {{{small}, {more}}}\ntrain: {{num_microbatches: 64, batch_size: 64}}")


def train(cluster: Cluster, more: str = TWO_POOLS, command: str = WAIT) -> None:
    """Its pods, each of which runs `command` in the place of an agent."""
    manifest = render_jobset(config(more), RUN, image=IMAGE, namespace=cluster.namespace)
    acting_as(cluster, "pipeline-runner").create(names.JOBSET, waiting(manifest, command))


def jobset(cluster: Cluster) -> dict[str, Any]:
    found = cluster.get(names.JOBSET, NAME)
    assert found is not None
    return found


def num_restarts(cluster: Cluster) -> int:
    return int((jobset(cluster).get("status") or {}).get("restarts", 0))


def running(cluster: Cluster, job: str) -> dict[str, Any]:
    """The running pod of a job."""

    def found() -> Any:
        return [
            pod for pod in cluster.list_pods(NAME)
            if pod["metadata"]["labels"][names.REPLICATED_JOB_LABEL] == job
            and pod["status"].get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")
        ]  # fmt: skip

    (pod,) = eventually(f"a pod of {job} runs", found)
    return dict(pod)


def replaced(cluster: Cluster, job: str, before: dict[str, Any]) -> None:
    uid = before["metadata"]["uid"]
    eventually(f"{job} has another pod", lambda: running(cluster, job)["metadata"]["uid"] != uid)


def delete_pod(cluster: Cluster, name: str) -> None:
    cluster.read("deleting a pod", cluster.core.delete_namespaced_pod, name, cluster.namespace)


def is_there(cluster: Cluster, pod: str) -> bool:
    try:
        cluster.get_pod(pod)
    except Missing:
        return False
    return True


def test_an_evicted_agent_and_a_deleted_one_are_replaced_and_nothing_restarts(cluster: Cluster) -> None:
    train(cluster)
    anchor, spot = running(cluster, "anchor"), running(cluster, "spot")
    name = spot["metadata"]["name"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    evict = cluster.core.create_namespaced_pod_eviction
    cluster.read("an eviction", evict, name, cluster.namespace, body)
    replaced(cluster, "spot", spot)
    delete_pod(cluster, anchor["metadata"]["name"])
    replaced(cluster, "anchor", anchor)
    assert num_restarts(cluster) == 0


def test_a_lost_rendezvous_pod_is_replaced_and_agents_keep_theirs(cluster: Cluster) -> None:
    train(cluster)
    before, store = running(cluster, "anchor"), running(cluster, "rdzv")
    delete_pod(cluster, store["metadata"]["name"])
    replaced(cluster, "rdzv", store)
    assert running(cluster, "anchor")["metadata"]["uid"] == before["metadata"]["uid"]
    assert num_restarts(cluster) == 0


def test_a_spot_pod_leaves_a_node_that_no_longer_answers(cluster: Cluster) -> None:
    """By the taint that the node's controller sets; the pod's own toleration ends its stay."""
    if len(cluster.list_nodes()) < 2:
        pytest.skip("one node: there is no other to go to")
    train(cluster, f"lost_node_toleration_s: 1, {TWO_POOLS}")
    spot = running(cluster, "spot")
    taint = {"spec": {"taints": [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]}}

    def leaves() -> bool:  # the controller takes the taint off a node that answers
        cluster.read("tainting", cluster.core.patch_node, spot["spec"]["nodeName"], taint)
        time.sleep(1)
        left = [pod for pod in cluster.list_pods(NAME) if pod["metadata"]["uid"] == spot["metadata"]["uid"]]
        return not left or bool(left[0]["metadata"].get("deletionTimestamp"))

    eventually("it leaves", leaves)
    replaced(cluster, "spot", spot)


def test_a_node_whose_kubelet_is_gone_loses_its_pod_when_it_is_declared_out_of_service(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then the pod is neither there nor replaced, the rest trains on, and the state says what to do."""
    stays, dies = two_nodes(cluster)
    stop, start = node_commands(dies)
    for node in (stays, dies):
        kubectl("label", "node", node, f"{SPOT}={str(node == dies).lower()}", "--overwrite")
    monkeypatch.setattr(live_state_module, "_PATIENCE_S", 1.0)
    here = f"node_selector: {{kubernetes.io/hostname: {stays}}}"
    spot = f"{{name: spot, spot: true, gpus_per_node: 0, node_selector: {{{SPOT}: 'true'}}}}"
    pools = f"[{{name: anchor, gpus_per_node: 0, {here}}}, {spot}]"
    try:
        train(cluster, f"lost_node_toleration_s: 1, rendezvous: {{{here}}}, pools: {pools}")
        anchor, lost = running(cluster, "anchor"), running(cluster, "spot")
        subprocess.run(stop, shell=True, check=True, timeout=60)

        def told() -> str:
            state = live_state(RUN, cluster=cluster)
            assert state is not None
            return state.stuck.get(lost["metadata"]["name"], "")

        eventually("it is said", lambda: f"kubectl taint node {dies} {OUT_OF_SERVICE}" in told(), 240)
        assert [each["metadata"]["uid"] for each in pods_of(cluster, "spot")] == [lost["metadata"]["uid"]]
        kubectl("label", "node", stays, f"{SPOT}=true", "--overwrite")
        kubectl("taint", "node", dies, OUT_OF_SERVICE)
        replaced(cluster, "spot", lost)
        assert running(cluster, "spot")["spec"]["nodeName"] == stays
        assert running(cluster, "anchor")["metadata"]["uid"] == anchor["metadata"]["uid"]
        assert num_restarts(cluster) == 0 and told() == ""
    finally:
        subprocess.run(start, shell=True, check=True, timeout=240)
        kubectl("taint", "node", dies, f"{OUT_OF_SERVICE}-")
        for node in (stays, dies):
            kubectl("label", "node", node, f"{SPOT}-")
        kubectl("wait", "--for=condition=Ready", f"node/{dies}", "--timeout=100s")


def two_nodes(cluster: Cluster) -> tuple[str, str]:
    nodes = [node["metadata"]["name"] for node in cluster.list_nodes()]
    if len(nodes) < 2:
        pytest.skip("one node: there is no other to go to")
    return nodes[0], nodes[1]


def node_commands(node: str) -> list[str]:
    """What ends the node's kubelet, and what starts it, as whoever knows the cluster's nodes says it."""
    given = [os.environ.get(f"EOSIN_TEST_{what}_NODE", "") for what in ("STOP", "START")]
    if not all(given):
        pytest.skip("EOSIN_TEST_STOP_NODE and EOSIN_TEST_START_NODE say how a node is lost: docs/how-to")
    return [command.replace("NODE", node) for command in given]


def pods_of(cluster: Cluster, job: str) -> list[dict[str, Any]]:
    pods = cluster.list_pods(NAME)
    return [pod for pod in pods if pod["metadata"]["labels"][names.REPLICATED_JOB_LABEL] == job]


def test_failures_of_the_anchor_restart_the_jobset(cluster: Cluster) -> None:
    once = "import os, sys; os.environ.get('EOSIN_RESTART_ATTEMPT') == '0' and sys.exit(1); " + WAIT
    train(cluster, f"anchor_backoff_limit: 0, {ONE_POOL}", once)
    eventually("the JobSet is restarted", lambda: num_restarts(cluster) == 1)
    running(cluster, "anchor")
    state = live_state(RUN, cluster=cluster)
    assert state is not None and (state.state, state.restarts) == ("Running", 1)


@pytest.mark.parametrize(
    ("command", "error", "words"),
    [
        ("import sys; print('agent: unknown key'); sys.exit(42)", UserError, "42 (configuration error)"),
        ("import sys; print('agent: loss is not finite'); sys.exit(43)", PermanentError, "43"),
        ("b'x' * (200 << 20)", PermanentError, "the kernel killed it for memory"),
    ],
    ids=["configuration", "defect", "out-of-memory"],
)
def test_an_end_that_no_retry_mends_is_told_in_a_sentence(
    cluster: Cluster, command: str, error: type[Exception], words: str
) -> None:
    train(cluster, f"anchor_backoff_limit: 0, max_restarts: 0, {ONE_POOL}", only_agents(command))
    eventually("the JobSet has failed", lambda: terminal_state(jobset(cluster)) == "Failed")
    ended, pods = jobset(cluster), cluster.list_pods(NAME)
    found = explain_failure(ended, pods, lambda f: cluster.pod_log(f.pod, f.container, tail_lines=9))
    assert isinstance(found, error) and words in found.message
    assert num_restarts(cluster) == 0


def test_a_pod_that_waits_for_the_others_ends_within_seconds_of_its_deletion(cluster: Cluster) -> None:
    """The agent's very command line, as process 1 of its container; the second node never comes."""
    pools = "pools: [{name: anchor, gpus_per_node: 0, min_nodes: 2, max_nodes: 2}]"
    manifest = render_jobset(config(pools), RUN, image=IMAGE, namespace=cluster.namespace)
    spec = manifest["spec"]["replicatedJobs"][1]["template"]["spec"]["template"]["spec"]
    agent = spec["containers"][0]
    here = {f"{NAME}-rdzv-0-0.{NAME}": "127.0.0.1", "is_host=0": "is_host=1",
            f"$(EOSIN_POD_HOST).{NAME}": "127.0.0.1"}  # fmt: skip
    for there, local in here.items():
        agent["command"] = [part.replace(there, local) for part in agent["command"]]
    agent["resources"] = {"requests": {"cpu": "1m"}}
    # Its store listens once torch is imported and it joins.
    agent["readinessProbe"] = {"tcpSocket": {"port": 29400}, "periodSeconds": 1}
    labels = {"batch.kubernetes.io/job-name": "j", "batch.kubernetes.io/job-completion-index": "0",
              names.RESTART_ATTEMPT_LABEL: "0"}  # fmt: skip
    pod = {"metadata": {"name": "joining", "labels": labels}, "spec": spec}
    cluster.read("a pod", cluster.core.create_namespaced_pod, cluster.namespace, pod)

    def joins() -> bool:
        conditions = cluster.get_pod("joining")["status"].get("conditions") or []
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    eventually("it joins", joins)
    time.sleep(2)
    began_s = time.monotonic()
    delete_pod(cluster, "joining")
    eventually("it is gone", lambda: not is_there(cluster, "joining"))
    assert time.monotonic() - began_s < 5
