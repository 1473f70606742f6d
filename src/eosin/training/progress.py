"""Progress of training: one event every few steps, TensorBoard's curves, Prometheus' gauges."""

import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from eosin.config import RunConfig
from eosin.errors import MissingDependency, PermanentError
from eosin.layout import RunLayout
from eosin.models.flops import measure_matrix_rate
from eosin.observability import RunLog
from eosin.process import Closing
from eosin.trackers import Tracker, open_trackers
from eosin.training.check import flops_per_image
from eosin.training.collapse import CollapseWatch, RollingSample, signals_of
from eosin.training.engine.dense_health import NAMES as DENSE_HEALTH
from eosin.training.engine.step import Learner, StepResult
from eosin.training.world import World

_PUBLISH_EVERY_S = 60.0
_PART_BYTES = 4 * 2**20
_SKIPPED = {"step", "num_steps", "eta_s"}


class TensorBoardWriter(Closing):
    """Scalars of the step event as TensorBoard event files under the run's `tensorboard/`.

    The file being written is published again every minute from a thread, and a new one is begun at
    4 MiB: a kill loses a minute of curves, and neither memory nor the local disk grows with the run.
    TensorBoard reads the files of all restarts as one run.
    """

    def __init__(self, log: RunLog, start: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependency("tensorboard", "tensorboard") from error
        self._log = log
        self._make_writer: Any = SummaryWriter
        self._folder = tempfile.TemporaryDirectory(prefix="eosin-tensorboard-")
        self._published_s = time.monotonic()
        self._publishing: threading.Thread | None = None
        self._open(purge_from=start + 1)

    def show(self, step: int, fields: Mapping[str, Any]) -> None:
        """Add every number of `fields` at `step`."""
        for name, value in fields.items():
            if name not in _SKIPPED and isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)
        if time.monotonic() - self._published_s >= _PUBLISH_EVERY_S:
            self.publish()
        if self._path().stat().st_size >= _PART_BYTES:
            self._begin_part()

    def publish(self) -> None:
        """Publish the file as it is, from a thread; skipped while the last one is still under way."""
        self._published_s = time.monotonic()
        if self._publishing is not None and self._publishing.is_alive():
            return
        self._writer.flush()
        self._publishing = threading.Thread(target=self._put, args=(self._path(),), daemon=True)
        self._publishing.start()

    def close(self) -> None:
        """Publish the rest and wait for it."""
        self._writer.close()
        self._wait()
        self._put(self._path())
        self._folder.cleanup()

    def _begin_part(self) -> None:
        self._writer.close()
        self._wait()
        self._put(self._path())
        self._path().unlink()
        self._open(purge_from=None)

    def _open(self, purge_from: int | None) -> None:
        self._writer = self._make_writer(self._folder.name, purge_step=purge_from)
        self._writer.flush()

    def _path(self) -> Path:
        return max(Path(self._folder.name).iterdir())

    def _put(self, path: Path) -> None:
        self._log.attach(RunLayout.tensorboard(path.name), path.read_bytes())

    def _wait(self) -> None:
        if self._publishing is not None:
            self._publishing.join()


METRICS_PORT = "EOSIN_METRICS_PORT"


class Progress:
    """Counts time between log lines. Only rank 0 has a log; the others keep time for nothing.

    Every rank calls `step` after every step: where a collapse is to stop training, all stop alike.
    """

    def __init__(
        self,
        config: RunConfig,
        world: World,
        log: RunLog,
        start: int,
        learner: Learner,
        checkpoint_age_s: Callable[[], float] | None = None,
    ) -> None:
        """`checkpoint_age_s`: seconds since the state was last durable, where this rank knows."""
        self._checkpoint_age_s = checkpoint_age_s
        self._config = config.train
        self._world = world
        self._log = log
        self._start = start
        self._window = _Window(start)
        self._sample = RollingSample(config.train.collapse.sample_size)
        self._watch = CollapseWatch(
            config.train.collapse,
            num_prototypes=config.model.dino_head.num_prototypes,
            first_step=config.train.collapse_first_step,
        )
        self._sinks: list[TensorBoardWriter | _Gauges | Tracker] = []
        if world.rank == 0:
            self._flops = flops_per_image(config, learner.student)
            self._peak = _peak_flops(config, world.device)
            log.event("speed", gflop_per_image=self._flops / 1e9, peak_tflops=self._peak / 1e12)
            self._sinks = _open_sinks(config, log, start)

    def waited(self, seconds: float) -> None:
        """Count time in which the step waited for patches."""
        self._window.waited_s += seconds

    def step(self, done: int, result: StepResult) -> None:
        """Report after `done` steps, if it is time to.

        Raises `PermanentError`, on every rank, where the teacher has collapsed and training is to stop.
        """
        if self._world.rank == 0 and result.teacher_features is not None:
            self._sample.add(result.teacher_features)
        last = done == self._config.num_steps
        if done % self._config.log_every_steps and not last and done != self._start + 1:
            return
        verdict = self._report(done, result) if self._world.rank == 0 else ""
        if self._config.collapse.stop and any(self._world.gather_json(bool(verdict))):
            raise PermanentError(
                f"step {done}: training stops, the teacher has collapsed{': ' if verdict else ''}{verdict}",
                hint="lower train.optimizer.lr, raise train.koleo.weight or the warm-up steps;"
                " train.collapse.stop=false only warns",
            )

    def close(self) -> None:
        """Publish what is still held back."""
        for sink in self._sinks:
            sink.close()

    def _report(self, done: int, result: StepResult) -> str:
        signals = self._signals(result)
        fields = self._fields(done, result) | signals
        if self._checkpoint_age_s is not None:
            fields["checkpoint_age_s"] = round(self._checkpoint_age_s(), 1)
        details = asdict(result.values) | {
            f"grad_norm_{name}": norm for name, norm in result.grad_norms.items()
        }
        self._log.event("step", **fields, details=details)
        for sink in self._sinks:
            sink.show(done, fields | details)
        for text in self._watch.judge(done, signals):
            self._log.event("warning", message=f"step {done}: {text}")
        self._window.restart(done)
        return self._watch.verdict(signals)

    def _signals(self, result: StepResult) -> dict[str, float]:
        signals = {"teacher_entropy": result.teacher_entropy}
        if result.center_norm is not None:
            signals["center_norm"] = result.center_norm
        if result.dense_health is not None:
            signals |= dict(zip(DENSE_HEALTH, result.dense_health.tolist(), strict=True))
        rows = self._sample.rows()
        return signals if rows is None else signals | signals_of(rows)

    def _fields(self, done: int, result: StepResult) -> dict[str, Any]:
        window_s, waited_s = self._window.lasted_s(), self._window.waited_s
        patches = (done - self._window.first) * self._config.batch_size
        per_s = patches / window_s
        return {
            "step": done,
            "num_steps": self._config.num_steps,
            "loss": result.loss,
            **{name: value for name, value in result.terms.items() if value},
            "lr": result.values.lr,
            "grad_norm": max(result.grad_norms.values()),
            "images_per_s": patches / max(window_s - waited_s, 1e-9),
            "patches_per_s": per_s,
            "mfu": per_s * self._flops / (self._peak * self._world.size),
            "data_wait_share": waited_s / window_s,
            "world_size": self._world.size,
            "memory_gib": _peak_memory_gib(self._world.device),
            "eta_s": round((self._config.num_steps - done) * self._window.step_s(done), 1),
        }


class _Window:
    """Time and waiting since the last line, and a step's time smoothed over lines."""

    def __init__(self, start: int) -> None:
        self._smoothed_s: float | None = None
        self._lines = 0
        self.restart(start)

    def restart(self, done: int) -> None:
        """Begin anew after `done` steps."""
        self.first, self.waited_s, self._began_s = done, 0.0, time.monotonic()

    def lasted_s(self) -> float:
        """Seconds since then."""
        return max(time.monotonic() - self._began_s, 1e-9)

    def step_s(self, done: int) -> float:
        """Seconds a step. The first line holds whatever a start costs, so it is forgotten."""
        now_s = self.lasted_s() / max(done - self.first, 1)
        self._lines += 1
        before_s = now_s if self._smoothed_s is None or self._lines == 2 else self._smoothed_s
        self._smoothed_s = 0.7 * before_s + 0.3 * now_s
        return self._smoothed_s


class _Gauges:
    """The fields of the step event as Prometheus gauges `eosin_train_*`."""

    def __init__(self, port: int) -> None:
        from prometheus_client import CollectorRegistry, start_http_server

        # A registry of its own: a process may train twice.
        self._registry = CollectorRegistry()
        self._server, _ = start_http_server(port, registry=self._registry)
        self._gauges: dict[str, Any] = {}

    def show(self, step: int, fields: dict[str, Any]) -> None:
        """Set a gauge to each field's value."""
        from prometheus_client import Gauge

        for name, value in fields.items():
            if name not in self._gauges:
                about = f"Field {name} of the last step event"
                self._gauges[name] = Gauge(f"eosin_train_{name}", about, registry=self._registry)
            self._gauges[name].set(value)

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()


def _open_sinks(config: RunConfig, log: RunLog, start: int) -> list[TensorBoardWriter | _Gauges | Tracker]:
    sinks: list[TensorBoardWriter | _Gauges | Tracker] = [*open_trackers(config, log)]
    sinks += [TensorBoardWriter(log, start)] if config.train.tensorboard else []
    port = os.environ.get(METRICS_PORT, "")
    try:
        if port.isdigit():
            sinks.append(_Gauges(int(port)))
    except OSError as error:  # metrics must never be what stops a run
        log.event("warning", message=f"no metrics on port {port} ({METRICS_PORT}): {error}")
    return sinks


def _peak_flops(config: RunConfig, device: torch.device) -> float:
    if config.train.peak_tflops is not None:
        return config.train.peak_tflops * 1e12
    is_half = config.train.precision == "bf16"
    return measure_matrix_rate(device, torch.bfloat16 if is_half else torch.float32)


def _peak_memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
