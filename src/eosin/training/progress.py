"""What a training step tells: one event every few steps, and metrics for Prometheus."""

from __future__ import annotations

import math
import os
import resource
import time
from typing import Any

import torch

from eosin.config import RunConfig
from eosin.observability import RunLog
from eosin.training.step import StepResult
from eosin.training.world import World

METRICS_PORT = "EOSIN_METRICS_PORT"
_COLLAPSED_SHARE = 0.01


class Progress:
    """Counts time between log lines. Only rank 0 has a log; the others keep time for nothing."""

    def __init__(self, config: RunConfig, world: World, log: RunLog, start: int) -> None:
        self._config = config.train
        self._world = world
        self._log = log
        self._started_s = self._window_s = time.monotonic()
        self._start = self._window_start = start
        self._waited_s = 0.0
        self._max_entropy = math.log(config.model.dino_head.num_prototypes)
        self._warned = False
        self._gauges = _Gauges.from_env() if world.rank == 0 else None

    def waited(self, seconds: float) -> None:
        """Count time in which the step waited for patches."""
        self._waited_s += seconds

    def step(self, done: int, result: StepResult) -> None:
        """Report after `done` steps, if it is time to."""
        last = done == self._config.num_steps
        if self._world.rank or (done % self._config.log_every_steps and not last and done != self._start + 1):
            return
        fields = self._fields(done, result)
        self._log.event("step", **fields)
        if self._gauges is not None:
            self._gauges.show(fields)
        self._watch_collapse(done, result)
        self._window_s, self._window_start, self._waited_s = time.monotonic(), done, 0.0

    def _fields(self, done: int, result: StepResult) -> dict[str, Any]:
        now_s = time.monotonic()
        window_s = max(now_s - self._window_s, 1e-9)
        patches = (done - self._window_start) * self._config.batch_size
        each_s = (now_s - self._started_s) / (done - self._start)
        return {
            "step": done,
            "num_steps": self._config.num_steps,
            "loss": result.loss,
            **{name: value for name, value in result.terms.items() if value},
            "lr": result.values.lr,
            "teacher_entropy": result.teacher_entropy,
            "grad_norm": max(result.grad_norms.values()),
            "images_per_s": patches / max(window_s - self._waited_s, 1e-9),
            "patches_per_s": patches / window_s,
            "data_wait_share": self._waited_s / window_s,
            "world_size": self._world.size,
            "memory_gib": _peak_memory_gib(self._world.device),
            "eta_s": round((self._config.num_steps - done) * each_s, 1),
        }

    def _watch_collapse(self, done: int, result: StepResult) -> None:
        if self._warned or result.teacher_entropy > _COLLAPSED_SHARE * self._max_entropy:
            return
        self._warned = True
        self._log.event(
            "warning",
            message=f"step {done}: the teacher puts nearly all patches on one prototype"
            f" (entropy {result.teacher_entropy:.3g} of at most {self._max_entropy:.3g} nats)",
        )


class _Gauges:
    """The fields of the step event as Prometheus gauges `eosin_train_*`."""

    def __init__(self, port: int) -> None:
        from prometheus_client import start_http_server

        start_http_server(port)
        self._gauges: dict[str, Any] = {}

    @classmethod
    def from_env(cls) -> _Gauges | None:
        port = os.environ.get(METRICS_PORT, "")
        return cls(int(port)) if port.isdigit() else None

    def show(self, fields: dict[str, Any]) -> None:
        from prometheus_client import Gauge

        for name, value in fields.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"eosin_train_{name}", f"Field {name} of the last step event")
            self._gauges[name].set(value)


def _peak_memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
