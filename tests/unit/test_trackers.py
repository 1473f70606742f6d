"""Weights & Biases and MLflow are told of a run; whatever their libraries fail of, the run does not."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from eosin import trackers
from eosin.config import RunConfig
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.records import TrainingDone
from eosin.storage import Store, open_store
from eosin.trackers import Tracker, open_trackers, send_results
from tests.support.training_run import tiny_config


class Log(RunLog):
    def __init__(self, store: Store | None = None) -> None:
        super().__init__("test", store)
        self.warnings: list[str] = []

    def event(self, name: str, /, **fields: Any) -> None:
        if name == "warning":
            self.warnings.append(str(fields["message"]))


class Backend:
    """A library that does what it is told to: fail, hang, or remember."""

    def __init__(self, fail: Exception | None = None, wait: threading.Event | None = None) -> None:
        self.fail, self.wait, self.shown = fail, wait, dict[int, Mapping[str, float]]()

    def show(self, points: trackers.Points) -> None:
        if self.wait is not None:
            self.wait.wait(60)
        if self.fail is not None:
            raise self.fail
        self.shown.update(points)

    def settle(self, step: int, figures: Mapping[str, float]) -> None: ...

    def keep(self, folder: Path, name: str, kind: str) -> None: ...

    def close(self) -> None: ...


def tracker(monkeypatch: pytest.MonkeyPatch, backend: Backend, log: Log) -> Tracker:
    monkeypatch.setitem(trackers._BACKENDS, "wandb", lambda uri, config: backend)
    return Tracker("wandb", "s3://bucket/run", tiny_config(), log)


def test_a_failure_is_one_warning_without_the_secrets_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    words = "401 at https://me:pass-word@mlflow.example/api for key 0123456789abcdef\nand a page of it"
    log = Log()
    made = tracker(monkeypatch, Backend(fail=ValueError(words)), log)
    for step in range(5):
        made.show(step, {"loss": 1.0})
    made.close()
    assert log.warnings == ["wandb: 401 at https://…@mlflow.example/api for key …"]


def test_a_server_that_hangs_holds_up_neither_a_step_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    log, released = Log(), threading.Event()
    made = tracker(monkeypatch, Backend(wait=released), log)
    started_s = time.monotonic()
    for step in range(trackers._MAX_WAITING + 10):
        made.show(step, {"loss": 1.0})
    made.close(timeout_s=0.3)
    released.set()
    assert time.monotonic() - started_s < 5
    assert len(log.warnings) == 1 and "slower than training" in log.warnings[0]


def test_only_numbers_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend()
    made = tracker(monkeypatch, backend, Log())
    made.show(3, {"loss": 1.5, "world_size": 2, "note": "text"})
    made.close()
    assert backend.shown == {3: {"loss": 1.5, "world_size": 2.0}}


@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_a_library_that_is_not_there_is_named_with_its_command(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    log = Log()
    for made in open_trackers(tiny_config(trackers=[kind]), log):
        made.close()
    (warning,) = log.warnings
    assert warning.startswith(f"{kind}: ") and f"[{kind}]" in warning


def test_a_mode_that_wandb_does_not_know_is_named() -> None:
    wandb = pytest.importorskip("wandb")
    with pytest.raises(ValueError, match="mode") as refused:
        wandb.Settings(mode="offlin")
    words = trackers.safe_words(refused.value)
    assert words.startswith("mode: Input should be") and "'offline'" in words


def test_what_is_told_is_no_part_of_what_a_run_is() -> None:
    assert tiny_config(trackers=["wandb"]).digest() == tiny_config().digest()


@pytest.fixture
def ended(tmp_path: Path) -> tuple[Store, RunConfig]:
    """A run that has ended, with a report and a teacher."""
    store, config = open_store(str(tmp_path / "my run")), tiny_config(trackers=["wandb", "mlflow"])
    done = TrainingDone(
        num_steps=20, models=("step-00000020",), snapshot_id="", config_digest=config.digest()
    )
    store.put(RunLayout.TRAINING_DONE, done.to_json())
    store.put(RunLayout.SUMMARY_HTML, b"<html>")
    store.put(RunLayout.teacher_weights("step-00000020"), b"weights")
    store.put(RunLayout.teacher_card("step-00000020"), b"{}")
    return store, config


FIGURES = {"tissue balanced_accuracy": 0.75, "tissue balanced_accuracy (random-init)": 0.5}


def test_mlflow_has_params_curves_figures_report_and_teacher_in_one_run(
    ended: tuple[Store, RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    store, config = ended
    config = tiny_config(trackers=["mlflow"])
    log = Log(store)
    for start in (0, 3):  # a restart goes on with the run
        for made in open_trackers(config, log):
            for step in range(start, start + 3):
                made.show(step, {"loss": 9.0 - step, "lr": 0.1})
            made.close()
    send_results(store, config, FIGURES, log)
    assert log.warnings == []
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("eosin")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "my-run" and run.info.status == "FINISHED"
    assert run.data.params["train.num_steps"] == "20" and run.data.params["seed"] == "5"
    curve = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in curve] == [(step, 9.0 - step) for step in range(6)]
    assert run.data.metrics["tissue/balanced_accuracy"] == 0.75
    assert run.data.metrics["tissue/balanced_accuracy-random-init"] == 0.5
    names = {
        item.path
        for folder in ("", "model", "report")
        for item in client.list_artifacts(run.info.run_id, folder)
    }
    assert {"config.yaml", "model/model.safetensors", "model/model.json", "report/summary.html"} <= names


class SlowServer(ThreadingHTTPServer):
    """As much of MLflow's tracking server as a run needs; every answer takes `delay_s`."""

    def __init__(self, delay_s: float, artifacts: Path) -> None:
        self.delay_s, self.artifacts = delay_s, artifacts
        self.metrics: list[dict[str, Any]] = []
        self.num_calls = 0
        super().__init__(("127.0.0.1", 0), _Answers)


class _Answers(BaseHTTPRequestHandler):
    server: SlowServer

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        sent = json.loads(self.rfile.read(length) or b"{}")
        time.sleep(self.server.delay_s)
        self.server.num_calls += 1
        self.server.metrics += sent.get("metrics", [])
        info = {"run_id": "r1", "experiment_id": "1", "status": "RUNNING",
                "artifact_uri": self.server.artifacts.as_uri()}  # fmt: skip
        experiment = {"experiment_id": "1", "name": "eosin", "lifecycle_stage": "active"}
        run = {"info": info, "data": {}}
        answer = json.dumps({"experiment": experiment, "run": run, "run_info": info}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET  # noqa: N815  # as the library calls it

    def log_message(self, *_: object) -> None: ...


def test_a_slow_server_gets_all_of_a_fast_training_and_holds_it_up_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    with SlowServer(0.5, tmp_path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        log, held_s = Log(), 0.0
        (made,) = open_trackers(tiny_config(trackers=["mlflow"]), log)
        for step in range(300):
            began_s = time.monotonic()
            made.show(step, {"loss": 1.0 / (1 + step), "lr": 0.1})
            held_s = max(held_s, time.monotonic() - began_s)
            time.sleep(0.01)
        made.close()
        server.shutdown()
    assert log.warnings == [] and held_s < 0.25
    shown = [(point["key"], int(point["step"])) for point in server.metrics]
    assert sorted(shown) == sorted((name, step) for step in range(300) for name in ("loss", "lr"))
    assert server.num_calls < 60


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a few small files."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of its own needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_warning_and_training_goes_on(
    full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{full_disk}/mlruns")
    log = Log()
    (made,) = open_trackers(tiny_config(trackers=["mlflow"]), log)
    for step in range(50):
        made.show(step, {f"number_{i}": 1.0 for i in range(50)})
    made.close()
    (warning,) = log.warnings
    assert warning.startswith("mlflow: ") and "No space left" in warning


def logged(data: bytes) -> Iterator[bytes]:
    """Records of W&B's file: LevelDB's log format after a header of 7 bytes, in blocks of 32 KiB."""
    block, header, record = 32768, 7, b""
    at = header
    while at + header <= len(data):
        if block - at % block < header:
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record = (record if kind in (3, 4) else b"") + data[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):
            yield record


def test_wandb_writes_config_curves_and_artifacts_offline(
    ended: tuple[Store, RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    store, _ = ended
    config, log = tiny_config(trackers=["wandb"]), Log(store)
    for made in open_trackers(config, log):
        for step in range(3):
            made.show(step, {"loss": 9.0 - step})
        made.close()
    send_results(store, config, FIGURES, log)
    assert log.warnings == []
    seen: dict[str, list[Any]] = {}
    for path in sorted(tmp_path.rglob("*.wandb")):
        for data in logged(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            seen.setdefault(kind, []).append(getattr(record, kind))
    assert {run.run_id for run in seen["run"]} == {trackers._run_id(store.uri)}
    assert {run.display_name for run in seen["run"]} == {"my-run"}
    told = {item.key: json.loads(item.value_json) for item in seen["run"][0].config.update}
    assert told["train"]["num_steps"] == 20
    losses = [
        json.loads(item.value_json)
        for history in seen["history"]
        for item in history.item
        if (item.key or "/".join(item.nested_key)) == "loss"
    ]
    assert losses == [9.0, 8.0, 7.0]
    artifacts = [each for kind in ("artifact", "use_artifact") for each in seen.get(kind, [])]
    assert {artifact.type for artifact in artifacts} >= {"model", "report"}
