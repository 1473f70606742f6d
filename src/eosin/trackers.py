"""Trackers of experiments: Weights & Biases and MLflow, by their own libraries and never in a run's way.

Where to and as whom is said in the environment, by the names that the libraries read themselves
(WANDB_API_KEY, WANDB_MODE, MLFLOW_TRACKING_URI …); their failures are told without what stands there.
"""

import hashlib
import importlib
import os
import queue
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import ValidationError

from eosin.config import RunConfig, dump_config
from eosin.errors import EosinError, as_user_error, describe
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.process import Closing
from eosin.runs import load_training_done
from eosin.storage import Store

Kind = Literal["wandb", "mlflow"]
Points = list[tuple[int, dict[str, float]]]
"""Numbers by name at each of some steps, in order."""
_PROJECT = "eosin"
_MAX_WAITING = 1000
_CLOSE_S, _SEND_S = 60.0, 1800.0
_SECRETS = re.compile(r"(KEY|TOKEN|PASSWORD|SECRET)")
_MAX_PARAM_CHARS, _PARAMS_AT_ONCE, _METRICS_AT_ONCE = 500, 100, 1000


class Tracker(Closing):
    """One tracker of the run at `run_uri`. A thread talks to it: the first failure is a warning, and the last
    that is asked of it."""

    def __init__(self, kind: Kind, run_uri: str, config: RunConfig, log: RunLog) -> None:
        self._kind, self._log, self._failed = kind, log, False
        self._jobs: queue.Queue[Callable[[_Backend], None] | None] = queue.Queue(_MAX_WAITING)
        self._points: Points = []
        self._lock = threading.Lock()
        self._begin: Callable[[], _Backend] = lambda: _BACKENDS[kind](run_uri, config)
        self._thread = threading.Thread(target=self._work, name=f"eosin-{kind}", daemon=True)
        self._thread.start()

    def show(self, step: int, fields: Mapping[str, Any]) -> None:
        """Add every number of `fields` to its curve, at `step`; what waits is sent together."""
        numbers = {name: float(value) for name, value in fields.items() if isinstance(value, int | float)}
        with self._lock:
            self._points.append((step, numbers))
        self._put(self._show_points)

    def settle(self, step: int, figures: Mapping[str, float]) -> None:
        """Set figures of the whole run, judged at `step`."""
        self._put(lambda backend: backend.settle(step, figures))

    def keep(self, folder: Path, name: str, kind: str) -> None:
        """Keep a copy of `folder` as an artifact of a kind such as model or report."""
        self._put(lambda backend: backend.keep(folder, name, kind))

    def close(self, timeout_s: float = _CLOSE_S) -> None:
        """Send what waits, within `timeout_s`: a server that does not answer is left behind."""
        deadline_s = time.monotonic() + timeout_s
        while self._thread.is_alive() and time.monotonic() < deadline_s:
            try:
                self._jobs.put(None, timeout=0.1)
                break
            except queue.Full:
                continue
        self._thread.join(max(0.0, deadline_s - time.monotonic()))
        if self._thread.is_alive():
            self._warn("it does not answer; what it was not told yet is in the run's own log")

    def _show_points(self, backend: "_Backend") -> None:
        with self._lock:
            points, self._points = self._points, []
        if points:
            backend.show(points)

    def _put(self, job: "Callable[[_Backend], None]") -> None:
        if self._failed:
            return
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self._warn("it is slower than training; some of the curves are left out")

    def _work(self) -> None:
        try:
            backend = self._begin()
            while (job := self._jobs.get()) is not None:
                job(backend)
            backend.close()
        except BaseException as error:  # whatever a library raises, sys.exit among it
            self._warn(safe_words(as_user_error(error)))

    def _warn(self, why: str) -> None:
        if not self._failed:
            self._failed = True
            self._log.event("warning", message=f"{self._kind}: {why}")


def open_trackers(config: RunConfig, log: RunLog) -> list[Tracker]:
    """Those of `train.trackers`, of the run whose log `log` is."""
    uri = log.store.uri if log.store is not None else ""
    return [Tracker(kind, uri, config, log) for kind in config.train.trackers]


def send_results(store: Store, config: RunConfig, figures: Mapping[str, float], log: RunLog) -> None:
    """Send headline, report and newest teacher of the run at `store` to its trackers, where it has any.

    `figures`: as `SummaryResult.headline` has them. What cannot be sent is a warning.
    """
    if not config.train.trackers:
        return
    done = load_training_done(store, config)
    folders = {"report": "summary/"} | ({"model": RunLayout.teacher(done.models[-1])} if done else {})
    named = {
        name.replace(" (random-init)", "-random-init").replace(" ", "/"): figures[name] for name in figures
    }
    with tempfile.TemporaryDirectory(prefix="eosin-tracked-") as root:
        for kind, prefix in folders.items():
            Path(root, kind).mkdir()
            for info in store.list(prefix):
                Path(root, kind, info.key.rpartition("/")[2]).write_bytes(store.get(info.key))
        trackers = open_trackers(config, log)
        for tracker in trackers:
            tracker.settle(config.train.num_steps, named)
            for kind in folders:
                tracker.keep(Path(root, kind), f"{_run_name(store.uri)}-{kind}", kind)
        for tracker in trackers:
            tracker.close(_SEND_S)


def safe_words(error: BaseException) -> str:
    """What `error` says, on one line, without credentials of the environment or of a URL in it."""
    told = describe(error) if isinstance(error, EosinError) else str(error).partition("\n")[0]
    if isinstance(error, ValidationError):  # its first line says only how many there are
        told = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    text = " ".join(told.split()) or type(error).__name__
    for name, value in os.environ.items():
        if _SECRETS.search(name) and len(value) > 3:
            text = text.replace(value, "…")
    return re.sub(r"//[^/@\s]+@", "//…@", text)


def _run_name(run_uri: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", run_uri.rstrip("/").rpartition("/")[2]) or "run"


def _run_id(run_uri: str) -> str:
    """The same for every process of a run."""
    return hashlib.sha256(run_uri.encode()).hexdigest()[:16]


class _Wandb:
    """A run of W&B, gone on with where it is there."""

    def __init__(self, run_uri: str, config: RunConfig) -> None:
        self._wandb: Any = importlib.import_module("wandb")
        # Neither what is printed nor the code is sent: a run's own log may name what others shall not see.
        settings = self._wandb.Settings(console="off", save_code=False, disable_git=True)
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT), id=_run_id(run_uri), resume="allow",
            name=_run_name(run_uri), config=config.model_dump(mode="json"), settings=settings,
        )  # fmt: skip

    def show(self, points: Points) -> None:
        for step, numbers in points:
            self._run.log(numbers, step=step)

    def settle(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.summary.update(dict(figures))

    def keep(self, folder: Path, name: str, kind: str) -> None:
        artifact = self._wandb.Artifact(name, type=kind)
        artifact.add_dir(str(folder))
        self._run.log_artifact(artifact)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of MLflow, known by a tag and gone on with where it is there."""

    def __init__(self, run_uri: str, config: RunConfig) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        self._entities: Any = importlib.import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        name, tag = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT), _run_id(run_uri)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        found = self._client.search_runs([number], f"tags.`eosin.run` = '{tag}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            made = self._client.create_run(number, run_name=_run_name(run_uri), tags={"eosin.run": tag})
            self._run = made.info.run_id
            self._tell_params(config)
        self._client.log_text(self._run, dump_config(config), "config.yaml")

    def _tell_params(self, config: RunConfig) -> None:
        kind = self._entities.Param
        leaves = _leaves(config.model_dump(mode="json"))
        told = [kind(key, str(value)[:_MAX_PARAM_CHARS]) for key, value in leaves]
        for start in range(0, len(told), _PARAMS_AT_ONCE):
            self._client.log_batch(self._run, params=told[start : start + _PARAMS_AT_ONCE])

    def show(self, points: Points) -> None:
        kind, now_ms = self._entities.Metric, int(time.time() * 1000)
        told = [
            kind(name, value, now_ms, step) for step, numbers in points for name, value in numbers.items()
        ]
        for start in range(0, len(told), _METRICS_AT_ONCE):
            self._client.log_batch(self._run, metrics=told[start : start + _METRICS_AT_ONCE])

    def settle(self, step: int, figures: Mapping[str, float]) -> None:
        self.show([(step, dict(figures))])

    def keep(self, folder: Path, name: str, kind: str) -> None:
        self._client.log_artifacts(self._run, str(folder), kind)

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


_Backend: TypeAlias = _Wandb | _MLflow
_BACKENDS: dict[Kind, Callable[[str, RunConfig], _Backend]] = {"wandb": _Wandb, "mlflow": _MLflow}
