"""Training of a run on this machine, as one call: elastic agents as child processes, watched to the end."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

from eosin.config import RunConfig
from eosin.errors import EXIT_TRANSIENT, EosinError, PermanentError, TransientError
from eosin.observability import RunLog
from eosin.process import sigterm_raises
from eosin.records import TrainingDone
from eosin.runs import load_pin, load_run, load_training_done
from eosin.storage import open_store
from eosin.training.check import check_training, local_memory_bytes
from eosin.training.checkpoints.publisher import export_missing
from eosin.training.elastic.agent import REASON
from eosin.training.elastic.processes import PARENT_PID
from eosin.training.elastic.reports import FAILURES_DIR, Failure, read_failures
from eosin.training.resume import forget

WORKER = "eosin.training.worker"


def train(run_uri: str, *, log: RunLog, worker: str = WORKER) -> TrainingDone:
    """Train the run to its last step on this machine, continuing from its newest checkpoint.

    Idempotent: where training has ended before, its record is returned at once, after teachers that have
    been deleted are exported again. `worker`: the module
    that each process runs. Raises `UserError` for a configuration that cannot be trained (before any
    process is started) or that a worker refused, `PermanentError` for a loss that is not finite or
    workers that fail again and again from the same step, `TransientError` where calling again may help.
    Interrupted (SIGINT, SIGTERM), the workers publish what they have and no process is left.
    """
    store = open_store(run_uri)
    config = load_run(run_uri, store=store)
    done = load_training_done(store, config)
    if done is not None:
        export_missing(store, config, done, log)
        forget(store)
        log.event("skipped", reason="training has ended before", num_steps=done.num_steps)
        return done
    load_pin(run_uri, store=store)
    log.event("plan", **check_training(config, memory_bytes=local_memory_bytes(config)))
    try:
        with tempfile.TemporaryDirectory(prefix="eosin-train-") as folder, sigterm_raises(KeyboardInterrupt):
            _run_agents(config, run_uri, worker, Path(folder))
    except EosinError as failed:
        if load_training_done(store, config) is None:
            raise
        # An agent that stumbles on its way out is no reason to run a step again that has its result.
        log.event("warning", message=f"training has ended, and then: {failed.message}")
    done = load_training_done(store, config)
    if done is None:
        raise TransientError(f"training of {run_uri} ended without its record", hint="run it again")
    return done


_KEPT_LINES = 40
_SHOWN_LINES = 15
_POLL_S = 0.1
_LEEWAY_S = 3.0


def local_agent_command(config: RunConfig, run_uri: str, worker: str, endpoint: str) -> list[str]:
    """One local agent. The world's size is fixed: there is one machine, so no last call to wait for."""
    elastic = config.train.elastic
    rendezvous = (
        f"join_timeout={math.ceil(elastic.join_timeout_s)},last_call_timeout=1,"
        f"keep_alive_interval={math.ceil(elastic.keep_alive_interval_s)},"
        f"keep_alive_max_attempt={elastic.keep_alive_attempts}"
    )
    return [
        sys.executable, "-m", "eosin.training.elastic.agent",
        f"--max-restarts-without-progress={elastic.max_restarts_without_progress}",
        *([f"--hang-timeout={elastic.hang_timeout_s:g}"] if elastic.hang_timeout_s else []),
        f"--nnodes={elastic.min_nodes}", f"--nproc-per-node={elastic.workers_per_node}",
        "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=eosin",
        f"--rdzv-conf={rendezvous}", "--local-addr=127.0.0.1",
        f"--max-restarts={elastic.max_restarts}",
        f"--shutdown-timeout={math.ceil(elastic.shutdown_timeout_s)}",
        "-m", worker, run_uri,
    ]  # fmt: skip


def _run_agents(config: RunConfig, run_uri: str, worker: str, folder: Path) -> None:
    """Train the run with `train.elastic.min_nodes` local agents whose workers run the module `worker`.

    `folder`: an empty one for what they leave behind. Raises what one of them failed of; none is left.
    """
    endpoint = f"127.0.0.1:{_free_port()}"
    agents = []
    for node in range(config.train.elastic.min_nodes):
        failures = folder / f"node-{node}"
        failures.mkdir()
        agents.append(_Agent(local_agent_command(config, run_uri, worker, endpoint), failures))
    try:
        running = True
        while running:
            running = not all(agent.ended for agent in agents)
            if failed := next((agent for agent in agents if agent.failed), None):
                raise failed.error()
            time.sleep(_POLL_S)
    finally:
        for agent in agents:
            agent.stop(config.train.elastic.shutdown_timeout_s)


class _Agent:
    """One agent process. Its standard error goes on to ours, and its last lines are kept."""

    def __init__(self, command: list[str], failures: Path) -> None:
        self._failures = failures
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        # A session of its own: Ctrl-C reaches us alone, and we tell it.
        self._process = subprocess.Popen(
            command, env=_environment(failures), stderr=subprocess.PIPE, text=True, errors="replace",
            start_new_session=True,
        )  # fmt: skip
        self._pump = threading.Thread(target=self._forward, name="eosin-agent-output", daemon=True)
        self._pump.start()

    @property
    def ended(self) -> bool:
        """Whether the process is over."""
        return self._process.poll() is not None

    @property
    def failed(self) -> bool:
        """Whether it is over with another exit code than 0."""
        return self._process.poll() not in (None, 0)

    def error(self) -> EosinError:
        """What ended it: the reason it left, a worker's, or its last lines."""
        self._pump.join(timeout=2)
        reason = self._failures / REASON
        if reason.exists():
            return self._of(Failure(**json.loads(reason.read_text())))
        failures = read_failures(self._failures)
        if failures:
            return self._of(failures[0])
        kind = TransientError if self._process.returncode == EXIT_TRANSIENT else PermanentError
        return kind(f"training ended with exit code {self._process.returncode}{self._tail()}")

    def stop(self, timeout_s: float) -> None:
        """SIGTERM, then SIGKILL a little after `timeout_s`, which is the agent's own bound; workers die with
        their agent."""
        if not self.ended:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout_s + _LEEWAY_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._pump.join(timeout=2)

    def _of(self, failure: Failure) -> EosinError:
        error = failure.to_error()
        if failure.kind in ("crash", "permanent") and (failure.trace or failure.rank < 0):
            error.message += self._tail()
        return error

    def _tail(self) -> str:
        lines = list(self._lines)[-_SHOWN_LINES:]
        return "\nlast lines of its log:\n  " + "\n  ".join(lines) if lines else ""

    def _forward(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.append(line.rstrip("\n"))
            sys.stderr.write(line)
            sys.stderr.flush()


def _environment(failures: Path) -> dict[str, str]:
    env = {
        # Sharing the rendezvous store with the workers hangs the job when an agent is lost (torch 2.13).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "PYTHONUNBUFFERED": "1",
        **os.environ,
        FAILURES_DIR: str(failures),
        PARENT_PID: str(os.getpid()),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    if shutil.which("nvidia-smi") is None:
        # A thread a rank: several share the cores already.
        env.setdefault("OMP_NUM_THREADS", "1")
    return env


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
