"""A real cluster for tests: the one that a kubeconfig names, and pods that need no image of eosin's own."""

import copy
import json
import os
import re
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
from tests.support.tools import run, tool

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "eosin"
HOST_IMAGE = "cluster.local/host:1"
IMAGE = os.environ.get("EOSIN_TEST_IMAGE", HOST_IMAGE)
"""An image of eosin that the cluster has; else one with nothing in it, over the machine's own programs."""
NAMESPACE_LABEL = "eosin.dev/test"
TIMEOUT_S = float(os.environ.get("EOSIN_TEST_TIMEOUT_S", "120"))
ATTEMPTS = 8
"""Of each request: a minute, in which a controller whose webhook is asked may begin anew."""
WAIT = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); time.sleep(3600)"


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
    body = {"metadata": {"name": name, "labels": {NAMESPACE_LABEL: "true", **labels}}}
    cluster.read("creating a namespace", cluster.core.create_namespace, body)
    try:
        yield connect(name, attempts=ATTEMPTS)
    finally:
        cluster.read("deleting a namespace", cluster.core.delete_namespace, name)


def install_accounts(cluster: Cluster, *more: str) -> None:
    """What the chart makes for launcher and watcher, and the account that runs pipelines; `more` options."""
    values = ("--set", "priorityClasses.create=false", *more)  # they are of the whole cluster
    done = run("helm", "template", "eosin", str(CHART), "--namespace", cluster.namespace, *values)
    assert done.returncode == 0, done.stderr
    import yaml

    kept = {"Role", "RoleBinding", "ServiceAccount", "ConfigMap"}
    objects = [each for each in yaml.safe_load_all(done.stdout) if each and each["kind"] in kept]
    runner = {"apiVersion": "v1", "kind": "ServiceAccount",
              "metadata": {"name": "pipeline-runner", "namespace": cluster.namespace}}  # fmt: skip
    apply([runner, *objects])


def apply(objects: list[dict[str, Any]]) -> None:
    import yaml

    kubectl("apply", "-f", "-", text=yaml.safe_dump_all(objects))


def kubectl(*arguments: str, text: str = "") -> str:
    """Its output. A webhook that does not answer is waited for: its controller may begin anew."""
    command = [os.environ.get("KUBECTL", "kubectl"), *arguments]

    def answered() -> subprocess.CompletedProcess[str] | None:
        done = subprocess.run(command, input=text, text=True, capture_output=True, timeout=120)
        return None if "failed calling webhook" in done.stderr else done

    done: subprocess.CompletedProcess[str] = eventually("the webhooks answer", answered)
    assert done.returncode == 0, done.stderr
    return done.stdout


def acting_as(cluster: Cluster, account: str, recorder: "Recorder | None" = None) -> Cluster:
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
    made = recorder.client(settings) if recorder else client.ApiClient(settings)
    return Cluster(made, cluster.namespace, attempts=ATTEMPTS)


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


# Its log: how to reach it, then each object that holds JSON, as it comes.
_SERVE_A_BUCKET = """
import json, os, socket, time
from pathlib import Path
from eosin.demo import server
from eosin.storage import open_store
server.LOOPBACK = socket.gethostbyname(socket.gethostname())
with server.LocalS3(Path("/tmp/s3")) as s3:
    s3.ensure_bucket("s3://bucket")
    os.environ.update(s3.env)
    print(json.dumps(s3.env), flush=True)
    store, told = open_store("s3://bucket"), set()
    while True:
        for key in sorted({info.key for info in store.list("") if info.key.endswith(".json")} - told):
            told.add(key)
            print(json.dumps({key: json.loads(store.get(key))}), flush=True)
        time.sleep(1)
"""


def serve_bucket(cluster: Cluster) -> dict[str, str]:
    """Keys and address of an S3 server with s3://bucket, in the Secret and the pod `bucket`.

    Skips where pods run an image of eosin, which holds no server.
    """
    if IMAGE != HOST_IMAGE:
        pytest.skip("the image of eosin holds no S3 server")
    about = {"name": "bucket", "namespace": cluster.namespace}
    container = {"name": "main", "image": IMAGE, "command": ["python", "-c", _SERVE_A_BUCKET],
                 "env": [{"name": "HOME", "value": "/tmp"}],
                 "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}  # fmt: skip
    spec = {"terminationGracePeriodSeconds": 1, "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {}}]}  # fmt: skip
    apply([{"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": spec}])
    lines = eventually("the bucket answers", lambda: bucket_log(cluster))
    env = {str(name): str(value) for name, value in lines[0].items()}
    apply([{"apiVersion": "v1", "kind": "Secret", "metadata": about, "stringData": env}])
    return env


def bucket_log(cluster: Cluster) -> list[dict[str, Any]]:
    """What the pod `bucket` has said so far."""
    lines = cluster.pod_log("bucket", "main", tail_lines=1000)
    return [json.loads(line) for line in lines if line.startswith("{")]


def waiting(manifest: dict[str, Any], command: str = WAIT) -> dict[str, Any]:
    """A JobSet whose agents run `command`, by default hold their place, instead of training."""
    manifest = copy.deepcopy(manifest)
    for job in manifest["spec"]["replicatedJobs"]:
        pod = job["template"]["spec"]["template"]["spec"]
        pod["terminationGracePeriodSeconds"] = 5
        for container in pod["containers"]:
            if container["name"] != "watcher":
                container["command"] = ["python", "-c", command]
                container.pop("readinessProbe", None)
                container["resources"] = {"limits": {"memory": "64Mi"}}
            container.setdefault("resources", {})["requests"] = {"cpu": "1m", "memory": "16Mi"}
    return manifest


def only_agents(command: str) -> str:
    """`command` in the pods of agents; that of the rendezvous, which has no job of an agent, waits."""
    return f"import os\nif 'EOSIN_JOB_NAME' in os.environ:\n  exec({command!r})\nelse:\n  exec({WAIT!r})"


def let_host_image_run(cluster: Cluster) -> None:
    """Give pods of the empty host image, in namespaces of tests, this machine's programs and checkout."""
    folders = {"/usr", str(ROOT), sys.prefix, sys.base_prefix, *_site_folders()}
    inside = {a for a in folders for b in folders if a != b and Path(a).is_relative_to(b)}
    volumes, mounts = [], []
    for number, path in enumerate(sorted(folders - inside)):
        host = f'hostPath: Object.spec.volumes.hostPath{{path: "{path}"}}'
        volumes.append(f'Object.spec.volumes{{name: "host{number}", {host}}}')
        mounts.append(f'Object.spec.containers.volumeMounts{{name: "host{number}", mountPath: "{path}",'
                      " readOnly: true}")  # fmt: skip
    variables = {"PATH": f"{sys.prefix}/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    env = [f'Object.spec.containers.env{{name: "{k}", value: "{v}"}}' for k, v in variables.items()]
    container = f"name: c.name, env: [{', '.join(env)}], volumeMounts: [{', '.join(mounts)}]"
    containers = f"object.spec.containers.map(c, Object.spec.containers{{{container}}})"
    changed = f"Object{{spec: Object.spec{{volumes: [{', '.join(volumes)}], containers: {containers}}}}}"
    of_host = f'object.spec.containers.all(c, c.image == "{HOST_IMAGE}")'
    group, name = "admissionregistration.k8s.io", "eosin-test-host"
    pods = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    policy = {
        "apiVersion": f"{group}/v1", "kind": "MutatingAdmissionPolicy", "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail", "reinvocationPolicy": "Never",
            "matchConstraints": {
                "resourceRules": [pods],
                "namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: "true"}},
            },
            "matchConditions": [{"name": "host-image", "expression": of_host}],
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": changed}}],
        },
    }  # fmt: skip
    binding = {"apiVersion": f"{group}/v1", "kind": "MutatingAdmissionPolicyBinding",
               "metadata": {"name": name}, "spec": {"policyName": name}}  # fmt: skip
    apply([policy, binding])


def _site_folders() -> list[str]:
    import kubernetes

    return [str(Path(kubernetes.__file__).resolve().parents[4])]


class Recorder:
    """What a client has asked the API server for, each a (group, resource, verb)."""

    def __init__(self) -> None:
        self.allowed: set[tuple[str, str, str]] = set()
        self.refused: set[tuple[str, str, str]] = set()

    def client(self, settings: Any) -> Any:
        from kubernetes import client

        recorder = self

        class Recording(client.ApiClient):  # type: ignore[misc]  # the client is untyped
            def call_api(self, path: str, method: str, *args: Any, **more: Any) -> Any:
                params, query = [*args, None, None][:2]
                asked = _permission(path.format(**(params or {})), method, query or [])
                try:
                    answer = super().call_api(path, method, *args, **more)
                except client.ApiException as error:
                    if asked and error.status == 403:
                        recorder.refused.add(asked)
                    elif asked:
                        recorder.allowed.add(asked)
                    raise
                if asked:
                    recorder.allowed.add(asked)
                return answer

        return Recording(settings)


def _permission(path: str, method: str, query: Any) -> tuple[str, str, str] | None:
    """None for discovery and reviews of one's own permissions, which need no Role, and for nodes."""
    found = re.fullmatch(r"/api(?:s/([^/]+))?/[^/]+/namespaces/[^/]+/([^/]+)(?:/([^/]+)(?:/([^/]+))?)?", path)
    if found is None:
        return None
    group, plural, name, subresource = found.groups(default="")
    keys = {key for key, _ in (query.items() if isinstance(query, dict) else query)}
    verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete", "PUT": "update"}.get(method)
    verb = verb or ("get" if name else "watch" if "watch" in keys else "list")
    return group, f"{plural}/{subresource}" if subresource else plural, verb


def helm(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Helm in the namespace of `cluster`."""
    command = [tool("helm"), "--namespace", cluster.namespace, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)
