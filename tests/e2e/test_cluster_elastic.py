"""The pods of a rendered JobSet as processes: their very commands, environment and exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eosin.cluster.jobset import render_jobset
from eosin.config import RunConfig
from eosin.layout import RunLayout
from eosin.records import TrainingDone
from eosin.storage import Store, open_store
from tests.support.training_run import POISONED_STEP, STEP_DELAY_S, begin, tiny_config

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
RENDERED_RUN = "s3://bucket/runs/elastic"
WORKER = "tests.support.training_run"
TIMEOUT_S = 240.0
ANCHOR, SPOT = "127.0.0.2", "127.0.0.3"


class Nodes:
    """Several hosts on one machine: addresses of the loopback network, a process group a pod.

    What a cluster would do is done here and nothing else: names become addresses, $(NAME) is expanded,
    and the bucket is a folder with a worker that reads arrays instead of slides.
    """

    def __init__(self, config: RunConfig, run_uri: str, folder: Path) -> None:
        self.manifest = render_jobset(config, RENDERED_RUN, image="eosin/train:test")
        self._run_uri = run_uri
        self._folder = folder
        self.name = self.manifest["metadata"]["name"]
        self._port = config.cluster.rendezvous.port
        self.pods: list[subprocess.Popen[bytes]] = []

    def start(self, job: str, address: str = "127.0.0.1") -> subprocess.Popen[bytes]:
        (spec,) = [
            item["template"]["spec"]["template"]["spec"]
            for item in self.manifest["spec"]["replicatedJobs"]
            if item["name"] == job
        ]
        (container,) = spec["containers"]
        environment = self._environment(container["env"], job)
        command = [self._local(part, environment, address) for part in container["command"]]
        with (self._folder / f"{job}-{len(self.pods)}.log").open("wb") as log:
            pod = subprocess.Popen(
                command,
                env=self._machine() | environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pods.append(pod)
        return pod

    def lose(self, pod: subprocess.Popen[bytes]) -> None:
        """The node is gone: no signal is handled, nobody says goodbye."""
        os.killpg(pod.pid, signal.SIGKILL)
        pod.wait(10)

    def close(self) -> None:
        for pod in self.pods:
            if pod.poll() is None:
                self.lose(pod)

    def logs(self) -> str:
        texts = [
            f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self._folder.glob("*.log"))
        ]
        return "\n".join(texts)

    def _environment(self, variables: list[dict[str, Any]], job: str) -> dict[str, str]:
        fields = {
            "metadata.labels['batch.kubernetes.io/job-name']": f"{self.name}-{job}-0",
            "metadata.labels['batch.kubernetes.io/job-completion-index']": "0",
            "metadata.labels['jobset.sigs.k8s.io/restart-attempt']": "0",
            "metadata.name": f"{self.name}-{job}-0-0-abcde",
            "spec.nodeName": "node",
        }
        found: dict[str, str] = {}
        for variable in variables:
            source = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
            found[variable["name"]] = fields[source] if source else _expand(variable["value"], found)
        # Folders and ports of a pod are its own; here they are shared.
        return found | {"HOME": str(self._folder), "TMPDIR": str(self._folder), "EOSIN_METRICS_PORT": ""}

    def _machine(self) -> dict[str, str]:
        keep = {key: os.environ[key] for key in ("PATH", STEP_DELAY_S, POISONED_STEP) if key in os.environ}
        return keep | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}

    def _local(self, part: str, environment: dict[str, str], address: str) -> str:
        part = _expand(part, environment)
        part = part.replace(f"{self.name}-rdzv-0-0.{self.name}:{self._port}", f"127.0.0.1:{self._port}")
        part = re.sub(r"^--local-addr=.*", f"--local-addr={address}", part)
        swapped = {"python": sys.executable, "eosin.training.worker": WORKER, RENDERED_RUN: self._run_uri}
        return swapped.get(part, part)


def _expand(text: str, environment: dict[str, str]) -> str:
    """$(NAME) as Kubernetes expands it; a name it does not know would stay as it is, and fail the test."""
    expanded = re.sub(r"\$\((\w+)\)", lambda match: environment[match.group(1)], text)
    assert "$(" not in expanded
    return expanded


def elastic_config(**train: Any) -> RunConfig:
    elastic = {
        # A busy machine must not be taken for a dead one: the survivor of a false alarm would train on
        # beside a second world.
        "keep_alive_interval_s": 2, "keep_alive_attempts": 8, "workers_per_node": 1,
        "last_call_timeout_s": 1, "process_group_timeout_s": 60, "shutdown_timeout_s": 10,
    }  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pools = [{"name": "anchor", "gpus_per_node": 0}, {"name": "spot", "spot": True, "gpus_per_node": 0}]
    cluster = {"rendezvous": {"port": port}, "pools": pools}
    tree = tiny_config(elastic=elastic, **train).model_dump(mode="json") | {"cluster": cluster}
    return RunConfig.model_validate(tree)


def worlds(store: Store) -> list[int]:
    """World sizes of every start of training, in order of time."""
    lines = [line for info in store.list("logs/train/") for line in store.get(info.key).splitlines()]
    events = sorted((json.loads(line) for line in lines), key=lambda event: str(event["time"]))
    return [event["world_size"] for event in events if event["event"] == "world"]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def start_nodes(tmp_path: Path, run_folder: Path) -> Iterator[Callable[[RunConfig], Nodes]]:
    started: list[Nodes] = []

    def start(config: RunConfig) -> Nodes:
        folder = tmp_path / "pods"
        folder.mkdir()
        started.append(Nodes(config, str(run_folder), folder))
        return started[-1]

    yield start
    for nodes in started:
        nodes.close()


def until(nodes: Nodes, condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, nodes.logs()
        time.sleep(0.2)


def checkpoints(store: Store) -> set[str]:
    return {info.key.split("/")[1] for info in store.list(RunLayout.CHECKPOINTS)}


@pytest.mark.long
def test_world_shrinks_with_a_lost_spot_node_and_grows_with_its_replacement(
    run_folder: Path, start_nodes: Callable[[RunConfig], Nodes], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = elastic_config(num_steps=4000, checkpoint_every_steps=5, export_every_steps=4000)
    begin(str(run_folder), config)
    store = open_store(str(run_folder))
    monkeypatch.setenv(STEP_DELAY_S, "0.05")
    nodes = start_nodes(config)
    nodes.start("rdzv")
    anchor = nodes.start("anchor", ANCHOR)
    spot = nodes.start("spot", SPOT)
    until(nodes, lambda: worlds(store)[-1:] == [2])
    until(nodes, lambda: bool(checkpoints(store)))
    nodes.lose(spot)
    until(nodes, lambda: worlds(store)[-1:] == [1])
    nodes.start("spot", SPOT)
    until(nodes, lambda: worlds(store)[-1:] == [2])
    before = max(checkpoints(store))
    until(nodes, lambda: max(checkpoints(store)) > before)
    assert anchor.poll() is None, nodes.logs()


def test_every_agent_ends_with_0_once_training_is_done(
    run_folder: Path, start_nodes: Callable[[RunConfig], Nodes]
) -> None:
    config = elastic_config(num_steps=3, checkpoint_every_steps=3, export_every_steps=3)
    config = begin(str(run_folder), config)
    nodes = start_nodes(config)
    nodes.start("rdzv")
    agents = [nodes.start("anchor", ANCHOR), nodes.start("spot", SPOT)]
    until(nodes, lambda: all(agent.poll() is not None for agent in agents))
    assert [agent.returncode for agent in agents] == [0, 0], nodes.logs()
    done = TrainingDone.from_json(
        open_store(str(run_folder)).get(RunLayout.TRAINING_DONE), source="training.json"
    )
    assert (done.num_steps, done.config_digest) == (3, config.digest())


def test_configuration_error_leaves_the_pod_with_42_at_once(
    start_nodes: Callable[[RunConfig], Nodes],
) -> None:
    nodes = start_nodes(elastic_config())
    nodes.start("rdzv")
    anchor = nodes.start("anchor", ANCHOR)
    until(nodes, lambda: anchor.poll() is not None)
    assert anchor.returncode == 42, nodes.logs()
    assert "no run at" in nodes.logs()
    (rule, *_) = next(
        item["template"]["spec"]["podFailurePolicy"]["rules"]
        for item in nodes.manifest["spec"]["replicatedJobs"]
        if item["name"] == "anchor"
    )
    assert anchor.returncode in rule["onExitCodes"]["values"]


@pytest.mark.long
def test_loss_that_is_not_finite_is_not_tried_again_on_another_node(
    run_folder: Path, start_nodes: Callable[[RunConfig], Nodes], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = elastic_config(num_steps=20)
    begin(str(run_folder), config)
    monkeypatch.setenv(POISONED_STEP, "2")
    nodes = start_nodes(config)
    nodes.start("rdzv")
    anchor = nodes.start("anchor", ANCHOR)
    until(nodes, lambda: anchor.poll() is not None)
    assert anchor.returncode == 43, nodes.logs()


@pytest.mark.long
def test_evicted_agent_goes_in_time_and_is_not_taken_for_a_configuration_error(
    run_folder: Path, start_nodes: Callable[[RunConfig], Nodes], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = elastic_config(num_steps=2000, checkpoint_every_steps=1000, export_every_steps=2000)
    begin(str(run_folder), config)
    store = open_store(str(run_folder))
    monkeypatch.setenv(STEP_DELAY_S, "0.1")
    nodes = start_nodes(config)
    nodes.start("rdzv")
    anchor = nodes.start("anchor", ANCHOR)
    until(nodes, lambda: bool(worlds(store)))
    time.sleep(3)
    anchor.send_signal(signal.SIGTERM)
    anchor.wait(config.cluster.grace_period_s)
    assert anchor.returncode not in (0, 42), nodes.logs()
