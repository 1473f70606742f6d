"""The store as a pod of the cluster reaches it: a pod that asks, its answer, and nothing left behind."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eosin.cluster import cluster_checks as checks
from eosin.cluster.api import Cluster
from eosin.cluster.cluster_checks import check_store_from_inside
from eosin.cluster.pods import doctor_pod
from eosin.config import load_config
from eosin.errors import Check
from tests.support.api_server import ApiServer, serve
from tests.support.kubernetes import built_in_errors

pytest.importorskip("kmock", reason="pip install kmock")

URI = "s3://bucket/runs"
IMAGE = "reg/eosin@sha256:1"
SECTION = load_config(
    "cluster: {s3: {secret: keys, endpoint_url: 'https://s3.example', ca_config_map: ca}, "
    "image_pull_secrets: [registry], rendezvous: {node_selector: {pool: system}}}"
).cluster
OK = {"name": "store put", "status": "ok", "detail": "written and read back", "fix": ""}
DENIED = {
    "name": "store list",
    "status": "fail",
    "detail": "403 at s3://bucket",
    "fix": "grant s3:ListBucket",
}
ELSEWHERE = {"name": "cuCIM", "status": "warn", "detail": "not installed", "fix": "pip install"}


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with serve() as running:
        yield running


def ask(server: ApiServer, status: dict[str, Any], log: str = "") -> list[Check]:
    """Ask while the pod comes to `status` with `log`."""
    found: list[Check] = []
    asked = threading.Event()

    def play_kubelet(_: float) -> None:
        if not asked.is_set():
            (request,) = server.requests("post", "/pods")
            name = request.data["metadata"]["name"]
            server.log(name, log)
            patch = {"status": status}
            server.cluster.read(
                "changing", server.cluster.core.patch_namespaced_pod, name, server.cluster.namespace, patch
            )
            asked.set()

    found = check_store_from_inside(
        server.cluster, SECTION, URI, image=IMAGE, sleep=play_kubelet, timeout_s=8
    )
    assert asked.is_set()
    return found


def pods(server: ApiServer) -> list[str]:
    listed = server.cluster.read("listing", server.cluster.core.list_namespaced_pod, server.cluster.namespace)
    return [pod["metadata"]["name"] for pod in listed["items"]]


def test_the_pods_answer_is_the_finding_and_the_pod_goes(server: ApiServer) -> None:
    log = "a warning first\n" + json.dumps({"checks": [ELSEWHERE, OK, DENIED]}) + "\n"
    found = ask(server, {"phase": "Failed"}, log)
    assert found == [
        Check("inside: store put", "ok", "written and read back"),
        Check("inside: store list", "fail", "403 at s3://bucket", "grant s3:ListBucket"),
    ]
    assert pods(server) == []


def test_an_image_that_cannot_be_had_is_said_with_the_kubelets_words(server: ApiServer) -> None:
    waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
    (check,) = ask(server, {"phase": "Pending", "containerStatuses": [
        {"name": "doctor", "state": {"waiting": waiting}}]})  # fmt: skip
    assert check.status == "fail" and "ImagePullBackOff: no such image" in check.detail and check.fix
    assert pods(server) == []


def test_a_pod_that_finds_no_node_is_not_waited_for_for_ever(server: ApiServer) -> None:
    (check,) = ask(server, {"phase": "Pending"})
    assert check.status == "warn" and "still Pending after 8 s" in check.detail
    assert pods(server) == []


@pytest.mark.parametrize("log", ["", "Traceback\nModuleNotFoundError: eosin\n", '{"checks": 3}\n'])
def test_a_pod_without_an_answer_fails(server: ApiServer, log: str) -> None:
    (check,) = ask(server, {"phase": "Failed"}, log)
    assert check.status == "fail" and "without an answer" in check.detail


def test_who_may_not_make_pods_is_sent_to_helm_test(server: ApiServer) -> None:
    server.mock["post /api/v1/namespaces/pathology/pods"] << 403
    (check,) = check_store_from_inside(server.cluster, SECTION, URI, image=IMAGE, sleep=lambda _: None)
    assert check.status == "warn" and "helm test" in check.fix
    (check,) = check_store_from_inside(server.cluster, SECTION, URI, image="", sleep=lambda _: None)
    assert check.status == "warn" and "helm test" in check.fix


def test_it_is_a_valid_pod_with_what_training_reaches_the_store_by() -> None:
    pod = doctor_pod(SECTION, "eosin-doctor-1", URI, image=IMAGE)
    assert built_in_errors(pod) == []
    (container,) = pod["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
    env = {each["name"]: each["value"] for each in container["env"]}
    assert (env["AWS_ENDPOINT_URL"], env["AWS_CA_BUNDLE"]) == ("https://s3.example", "/etc/eosin/ca/ca.crt")
    assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "train", "one network policy for both"
    assert not [key for key in container["resources"]["requests"] if "gpu" in key]


def test_its_command_prints_what_is_read_here(server: ApiServer, tmp_path: Path) -> None:
    command = doctor_pod(SECTION, "x", f"file://{tmp_path}/runs", image=IMAGE)["spec"]["containers"][0][
        "command"
    ]
    done = subprocess.run(
        [sys.executable, *command[1:]], env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    found = ask(server, {"phase": "Succeeded"}, done.stdout)
    assert {check.status for check in found} == {"ok"} and len(found) >= 4


def test_doctor_asks_from_inside_only_where_it_is_outside(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(checks, "check_store_from_inside", lambda *_, **__: asked.append(URI) or [])
    server.mock["get /version/"] << {"gitVersion": "v1.34.1"}
    monkeypatch.setattr(Cluster, "can_i", lambda *_: False)
    for inside in (False, True):
        monkeypatch.setattr(checks, "inside_a_pod", lambda inside=inside: inside)
        checks.run_cluster_checks(SECTION, cluster=server.cluster, uri=URI)
    checks.run_cluster_checks(SECTION, cluster=server.cluster)
    assert asked == [URI]
