"""A mock Kubernetes API server on loopback, driven by the official client from another thread."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from eosin.cluster import names
from eosin.cluster.api import Cluster

NAMESPACE = "pathology"
JOBSETS = "jobset.x-k8s.io/v1alpha2/jobsets"
WORKFLOWS = "argoproj.io/v1alpha1/workflows"


class ApiServer:
    """`mock` is kmock's emulator; the methods play the parts of controllers and kubelets."""

    def __init__(self, mock: Any, url: str) -> None:
        from kubernetes import client

        self.mock = mock
        self.url = url
        settings = client.Configuration()
        settings.host = url
        settings.retries = False
        self.cluster = Cluster(client.ApiClient(settings), NAMESPACE, sleep=lambda _: None)
        for resource in (
            JOBSETS,
            WORKFLOWS,
            "v1/pods",
            "v1/events",
            "v1/configmaps",
            "policy/v1/poddisruptionbudgets",
        ):
            mock.resources[resource] = {}

    def add(self, resource: str, manifest: dict[str, Any]) -> None:
        self.mock.objects[resource, NAMESPACE, manifest["metadata"]["name"]] = manifest

    def patch_jobset(self, name: str, patch: dict[str, Any]) -> None:
        """Change a JobSet as its controller would; watchers are told."""
        self.cluster.patch(names.JOBSET, name, patch)

    def end(self, name: str, state: str, message: str = "") -> None:
        conditions = [{"type": state, "status": "True", "reason": "Test", "message": message}]
        self.patch_jobset(name, {"status": {"terminalState": state, "conditions": conditions}})

    def pod(self, jobset: str, job: str, index: int = 0, **status: Any) -> str:
        """Add a pod of a JobSet's job; returns its name."""
        container = names.RENDEZVOUS_CONTAINER if job == "rdzv" else names.CONTAINER
        name = f"{jobset}-{job}-0-{index}-x7k2p"
        labels = {names.JOBSET_NAME_LABEL: jobset, names.REPLICATED_JOB_LABEL: job}
        metadata = {"name": name, "namespace": NAMESPACE, "uid": f"{job}{index}-0000-1111", "labels": labels}
        self.add(
            "v1/pods", {"metadata": metadata, "spec": {"containers": [{"name": container}]}, "status": status}
        )
        return name

    def log(self, pod: str, text: str) -> None:
        self.mock[f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/log"] << text.encode()

    def requests(self, method: str, part: str) -> list[Any]:
        return [
            request
            for request in self.mock
            if request.method.value == method.upper() and part in str(request.url.path)
        ]


@contextmanager
def serve() -> Iterator[ApiServer]:
    """A fresh server on a free port of loopback, gone at the end."""
    kmock = pytest.importorskip("kmock", reason="pip install kmock")
    started = threading.Event()
    box: dict[str, Any] = {}

    async def main() -> None:
        async with kmock.KubernetesEmulator() as mock, kmock.Server(mock) as server:
            box.update(mock=mock, url=str(server.url).rstrip("/"), loop=asyncio.get_running_loop())
            box["stop"] = asyncio.Event()
            started.set()
            await box["stop"].wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert started.wait(10), "the mock server did not start"
    try:
        yield ApiServer(box["mock"], box["url"])
    finally:
        box["loop"].call_soon_threadsafe(box["stop"].set)
        thread.join(5)
