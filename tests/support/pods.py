"""The pods of a rendered JobSet as processes: their very commands, environment and exit codes.

What a cluster would do is done here and nothing else: names become addresses, $(NAME) is expanded, a pod
gets a /dev/shm of its own, and the bucket is a folder with a worker that reads arrays instead of slides.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eosin.cluster.jobset import render_jobset
from eosin.cluster.names import CONTAINER, RENDEZVOUS_CONTAINER
from eosin.config import RunConfig
from eosin.layout import RunLayout
from eosin.process import die_with_parent
from eosin.storage import Store
from eosin.training.checkpoints.shm import SHM_DIR
from tests.support.hosts import Host, signal_group
from tests.support.training_run import CONSUMED, POISONED_STEP, STEP_DELAY_S, tiny_config

ROOT = Path(__file__).resolve().parents[2]
RENDERED_RUN = "s3://bucket/runs/elastic"
WORKER = "tests.support.training_run"
TIMEOUT_S = 1200.0
LOOPBACK = Host("127.0.0.1", "lo")
_PASSED = (STEP_DELAY_S, POISONED_STEP, CONSUMED, "EOSIN_TEST_SLOW_ADDRESS")


@dataclass
class Pod:
    process: subprocess.Popen[bytes]
    job: str
    index: int
    host: Host
    shm: Path
    log: Path
    temporary: Path

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def step(self) -> int:
        """The newest step of which its memory holds a piece."""
        return max((int(path.name[5:13]) for path in self.shm.glob("*/step-*.json")), default=0)

    def reports(self, pattern: str) -> list[Path]:
        """What its agent and workers have told each other, by the name of the file."""
        return list(self.temporary.glob(f"eosin-agent-*/{pattern}"))

    def events(self, name: str) -> list[dict[str, Any]]:
        """Events that its processes have told of, oldest first."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            if line.startswith("{") and f'"event": "{name}"' in line:
                try:
                    found.append(json.loads(line))
                except ValueError:
                    continue
        return found


class Pods:
    """The pods of one run's JobSet. `rendezvous`: the host of the store."""

    def __init__(self, config: RunConfig, run_uri: str, folder: Path, *, rendezvous: Host = LOOPBACK) -> None:
        self.manifest = render_jobset(config, RENDERED_RUN, image="eosin/train:test")
        self.name = self.manifest["metadata"]["name"]
        self.pods: list[Pod] = []
        self._run_uri = run_uri
        self._folder = folder
        self.rendezvous = rendezvous
        self._port = config.cluster.rendezvous.port
        folder.mkdir(parents=True, exist_ok=True)

    def spec(self, job: str) -> dict[str, Any]:
        """The Job of a pool as the JobSet has it."""
        (job_spec,) = [
            item["template"]["spec"]
            for item in self.manifest["spec"]["replicatedJobs"]
            if item["name"] == job
        ]
        return dict(job_spec)

    def start(self, job: str, host: Host = LOOPBACK, *, index: int = 0, memory_of: Pod | None = None) -> Pod:
        """The pod of completion `index` of a pool, on `host`; or that of `memory_of`, whose container is
        started again."""
        containers = self.spec(job)["template"]["spec"]["containers"]
        (container,) = [each for each in containers if each["name"] in (CONTAINER, RENDEZVOUS_CONTAINER)]
        number = len(self.pods)
        log, temporary = self._folder / f"{job}-{number}.log", self._folder / f"tmp-{number}"
        shm = memory_of.shm if memory_of is not None else self._folder / f"shm-{number}"
        shm.mkdir(exist_ok=True)
        temporary.mkdir()
        environment = self._environment(container["env"], job, index) | {SHM_DIR: str(shm)}
        environment["TMPDIR"] = str(temporary)
        command = [self._local(part, environment, host.address) for part in container["command"]]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*host.prefix, *command],
                env=self._machine(host) | environment,
                cwd=ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self.pods.append(Pod(process, job, index, host, shm, log, temporary))
        return self.pods[-1]

    def lose(self, pod: Pod) -> None:
        """The node is gone, its memory too: no signal is handled, nobody says goodbye."""
        signal_group(pod.process, signal.SIGKILL)
        pod.process.wait(60)
        for path in sorted(pod.shm.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()

    def close(self) -> None:
        for pod in self.pods:
            if not pod.ended:
                self.lose(pod)

    def step(self) -> int:
        """The newest step that is kept in memory anywhere or lies in the bucket."""
        markers = Path(self._run_uri).glob("checkpoints/*/COMPLETE.json")
        durable = (int(path.parent.name.removeprefix("step-")) for path in markers)
        return max([0, *durable, *(pod.step() for pod in self.pods)])

    def has_ended(self) -> bool:
        """Whether training has."""
        return (Path(self._run_uri) / RunLayout.TRAINING_DONE).exists()

    def worlds(self) -> list[dict[str, Any]]:
        """Every start of training: world size, step, and where the state was found; in order of time."""
        events = [event for pod in self.pods for event in pod.events("world")]
        return sorted(events, key=lambda event: str(event["time"]))

    def until(self, condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
        """Wait for `condition`; the logs of all pods are the message where it never comes."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, self.logs()
            time.sleep(0.1)

    def logs(self) -> str:
        return "\n".join(
            f"--- {pod.log.name}, exit code {pod.process.poll()}\n{pod.log.read_text()[-3000:]}"
            for pod in self.pods
        )

    def _environment(self, variables: list[dict[str, Any]], job: str, index: int) -> dict[str, str]:
        fields = {
            "metadata.labels['batch.kubernetes.io/job-name']": f"{self.name}-{job}-0",
            "metadata.labels['batch.kubernetes.io/job-completion-index']": str(index),
            "metadata.labels['jobset.sigs.k8s.io/restart-attempt']": "0",
            "metadata.name": f"{self.name}-{job}-0-{index}-abcde",
            "spec.nodeName": "node",
        }
        found: dict[str, str] = {}
        for variable in variables:
            source = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
            found[variable["name"]] = fields[source] if source else _expand(variable["value"], found)
        # Folders and ports of a pod are its own; here they are shared.
        return found | {"HOME": str(self._folder), "EOSIN_METRICS_PORT": ""}

    def _machine(self, host: Host) -> dict[str, str]:
        keep = {key: os.environ[key] for key in ("PATH", *_PASSED) if key in os.environ}
        return keep | {
            "PYTHONPATH": str(ROOT),
            "GLOO_SOCKET_IFNAME": host.interface,
            "OMP_NUM_THREADS": "1",
            "EOSIN_TEST_ADDRESS": host.address,
        }

    def _local(self, part: str, environment: dict[str, str], address: str) -> str:
        part = _expand(part, environment)
        store = f"{self.rendezvous.address}:{self._port}"
        part = part.replace(f"{self.name}-rdzv-0-0.{self.name}:{self._port}", store)
        part = re.sub(r"^--local-addr=.*", f"--local-addr={address}", part)
        swapped = {"python": sys.executable, "eosin.training.worker": WORKER, RENDERED_RUN: self._run_uri}
        return swapped.get(part, part)


def _expand(text: str, environment: dict[str, str]) -> str:
    """$(NAME) as Kubernetes expands it; a name it does not know would stay as it is, and fail the test."""
    expanded = re.sub(r"\$\((\w+)\)", lambda match: environment[match.group(1)], text)
    assert "$(" not in expanded
    return expanded


def elastic_config(*, max_spot_nodes: int = 1, **train: Any) -> RunConfig:
    """An anchor pool of one node and a spot pool, workers on the CPU."""
    elastic = {
        # A busy machine must not be taken for a dead one: the survivor of a false alarm would train on
        # beside a second world.
        "keep_alive_interval_s": 2, "keep_alive_attempts": 8, "workers_per_node": 1,
        "last_call_timeout_s": 1, "process_group_timeout_s": 60, "shutdown_timeout_s": 10,
        **train.pop("elastic", {}),
    }  # fmt: skip
    spot = {"name": "spot", "spot": True, "gpus_per_node": 0, "max_nodes": max_spot_nodes}
    pools = [{"name": "anchor", "gpus_per_node": 0}, spot]
    cluster = {"rendezvous": {"port": _free_port()}, "pools": pools}
    tree = tiny_config(elastic=elastic, **train).model_dump(mode="json") | {"cluster": cluster}
    return RunConfig.model_validate(tree)


def checkpoints(store: Store) -> set[str]:
    return {info.key.split("/")[1] for info in store.list(RunLayout.CHECKPOINTS)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
