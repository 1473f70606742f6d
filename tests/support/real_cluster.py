"""A real cluster for tests: the one that a kubeconfig names, and pods that need no image of eosin's own."""

from __future__ import annotations

import copy
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from eosin.cluster.api import Cluster, connect
from eosin.cluster.names import WORKFLOW, WORKFLOW_LABEL, OwnerReference
from eosin.errors import EosinError
from tests.support.tools import run

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "eosin"
HOST_IMAGE = "cluster.local/host:1"
IMAGE = os.environ.get("EOSIN_TEST_IMAGE", HOST_IMAGE)
"""An image of eosin that the cluster has; else one with nothing in it, over the machine's own programs."""
TIMEOUT_S = float(os.environ.get("EOSIN_TEST_TIMEOUT_S", "120"))
_WAIT = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); time.sleep(3600)"


def reach() -> Cluster:
    """The cluster of the kubeconfig; skips with a clear line where none answers."""
    pytest.importorskip("kubernetes", reason="pip install 'eosin[kubeflow]'")
    if os.environ.get("EOSIN_TEST_CLUSTER") != "1":
        pytest.skip("EOSIN_TEST_CLUSTER=1 lets these tests change the cluster that KUBECONFIG names")
    try:
        cluster = connect("default", attempts=2)
        cluster.server_version()
    except EosinError as error:
        pytest.skip(f"no cluster: {error.message}")
    return cluster


@contextmanager
def namespace(cluster: Cluster, **labels: str) -> Iterator[Cluster]:
    """A namespace of its own with the chart's accounts and Roles, deleted at the end."""
    name = f"eosin-test-{secrets.token_hex(3)}"
    body = {"metadata": {"name": name, "labels": labels}}
    cluster.read("creating a namespace", cluster.core.create_namespace, body)
    try:
        yield connect(name, attempts=2)
    finally:
        cluster.read("deleting a namespace", cluster.core.delete_namespace, name)


def install_accounts(cluster: Cluster) -> None:
    """What the chart makes for launcher and watcher, and the account that runs pipelines."""
    done = run("helm", "template", "eosin", str(CHART), "--namespace", cluster.namespace)
    assert done.returncode == 0, done.stderr
    import yaml

    kept = {"Role", "RoleBinding", "ServiceAccount", "ConfigMap"}
    objects = [each for each in yaml.safe_load_all(done.stdout) if each and each["kind"] in kept]
    runner = {"apiVersion": "v1", "kind": "ServiceAccount",
              "metadata": {"name": "pipeline-runner", "namespace": cluster.namespace}}  # fmt: skip
    apply([runner, *objects])


def apply(objects: list[dict[str, Any]]) -> None:
    import yaml

    done = subprocess.run(
        [os.environ.get("KUBECTL", "kubectl"), "apply", "-f", "-"],
        input=yaml.safe_dump_all(objects), text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def acting_as(cluster: Cluster, account: str) -> Cluster:
    """The same namespace, with the permissions of a service account and no others."""
    from kubernetes import client

    token = cluster.read(
        "asking for a token",
        cluster.core.create_namespaced_service_account_token,
        account,
        cluster.namespace,
        {"spec": {"expirationSeconds": 3600}},
    )["status"]["token"]
    settings = copy.copy(cluster.core.api_client.configuration)
    settings.cert_file = settings.key_file = None
    settings.api_key = {"authorization": f"Bearer {token}"}
    settings.refresh_api_key_hook = None
    return Cluster(client.ApiClient(settings), cluster.namespace, attempts=2)


def make_workflow(cluster: Cluster, name: str, run_id: str = "") -> OwnerReference:
    """A Workflow that no controller runs: it is there to own, and to be told to stop."""
    made = cluster.create(WORKFLOW, {
        "apiVersion": WORKFLOW.api_version, "kind": "Workflow",
        "metadata": {"name": name, "labels": {"pipeline/runid": run_id or name, WORKFLOW_LABEL: name}},
        "spec": {"entrypoint": "x"}})  # fmt: skip
    return OwnerReference(WORKFLOW.api_version, "Workflow", name, made["metadata"]["uid"])


def eventually(what: str, condition: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
    """What `condition` gives once it is true."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        if found := condition():
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what}: not within {timeout_s:g} s")


def runnable(manifest: dict[str, Any]) -> dict[str, Any]:
    """A JobSet whose agents wait instead of training."""
    manifest, folders = copy.deepcopy(manifest), _mounted() if IMAGE == HOST_IMAGE else []
    for job in manifest["spec"]["replicatedJobs"]:
        pod = job["template"]["spec"]["template"]["spec"]
        for container in pod["containers"]:
            if "watcher" not in container["name"]:
                container["command"] = [_python(), "-c", _WAIT]
                container.pop("readinessProbe", None)
            elif IMAGE == HOST_IMAGE:
                container["command"][0] = sys.executable
            container["resources"] = {"requests": {"cpu": "1m", "memory": "16Mi"}}
            for number, path in enumerate(folders):
                mount = {"name": f"host{number}", "mountPath": path, "readOnly": True}
                container["volumeMounts"].append(mount)
        for number, path in enumerate(folders):
            pod["volumes"].append({"name": f"host{number}", "hostPath": {"path": path}})
    return manifest


def _python() -> str:
    return "/usr/bin/python3" if IMAGE == HOST_IMAGE else "python"


def _mounted() -> list[str]:
    """The machine's own programs, this checkout and what its interpreter is made of."""
    folders = {"/usr", str(ROOT), sys.prefix, sys.base_prefix, *_site_folders()}
    inside = {a for a in folders for b in folders if a != b and Path(a).is_relative_to(b)}
    return sorted(folders - inside)


def _site_folders() -> list[str]:
    import kubernetes

    return [str(Path(kubernetes.__file__).resolve().parents[4])]
