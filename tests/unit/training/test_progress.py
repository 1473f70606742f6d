"""What a run says of itself: one line an interval, TensorBoard's files, Prometheus' gauges."""

import json
import re
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from eosin.config import RunConfig
from eosin.errors import PermanentError
from eosin.layout import RunLayout
from eosin.observability import RunLog, step_line
from eosin.storage import open_store
from eosin.training import progress
from eosin.training.loop import ReachedStep, Trainer
from eosin.training.progress import METRICS_PORT
from eosin.training.world import World
from tests.support.training_run import ArraySource, tiny_config


def train(folder: Path, config: RunConfig, until: int) -> list[dict[str, Any]]:
    """The events of a training from its start to `until`."""
    store = open_store(str(folder))
    with RunLog("train", store) as log:
        trainer = Trainer(config, World(config.train.num_microbatches), log)
        trainer.run(ArraySource(), ReachedStep(0, None), None, str, until=until)
    keys = sorted(info.key for info in store.list(RunLayout.LOGS))
    return [json.loads(line) for key in keys for line in store.get(key).decode().splitlines()]


def named(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == name]


@pytest.mark.parametrize("method", ["dino", "dinov2"])
def test_each_interval_says_how_training_goes(tmp_path: Path, method: str) -> None:
    events = train(tmp_path, tiny_config(method=method, peak_tflops=0.5, collapse={"sample_size": 64}), 10)
    steps = named(events, "step")
    assert [event["step"] for event in steps] == [1, 5, 10]
    (speed,) = named(events, "speed")
    last = steps[-1]
    assert {"weight_decay", "momentum", "teacher_temperature", "last_layer_lr"} <= last["details"].keys()
    assert {"grad_norm_backbone", "grad_norm_dino_head"} <= last["details"].keys()
    assert max(v for k, v in last["details"].items() if k.startswith("grad_norm")) == last["grad_norm"]
    assert "details" not in step_line(last) and -1 <= last["patch_locality"] <= 1
    assert {
        "loss",
        "dino_local",
        "dino_global",
        "lr",
        "grad_norm",
        "images_per_s",
        "patches_per_s",
        "data_wait_share",
        "memory_gib",
        "eta_s",
        "teacher_entropy",
        "feature_center_norm",
    } <= last.keys()
    # The share of 0.5 TFLOP/s that this many patches of this many operations are.
    assert last["mfu"] == pytest.approx(last["patches_per_s"] * speed["gflop_per_image"] * 1e9 / 0.5e12)
    assert "rankme" not in steps[0] and 1 <= last["rankme"] <= 32
    assert ("center_norm" in last) == (method == "dino")


def test_the_line_for_people_is_one_line_with_units() -> None:
    line = step_line(
        {"step": 20, "num_steps": 100, "loss": 6.1234567, "ibot": 1.5, "lr": 1e-3, "images_per_s": 61.234,
         "mfu": 0.345, "data_wait_share": 0.021, "memory_gib": 0.5, "rankme": 41.2, "eta_s": 3725.0}
    )  # fmt: skip
    assert line == (
        "step 20/100 · loss 6.123 · ibot 1.5 · lr 0.001 · 61.2 images/s · MFU 34.5% · data wait 2% · 0.50 GiB"
        " · RankMe 41.2 · 1:02 h left"
    )


def test_the_device_is_measured_where_its_peak_is_not_given(tmp_path: Path) -> None:
    events = train(tmp_path, tiny_config(), 2)
    assert named(events, "speed")[0]["peak_tflops"] > 1e-3
    assert 0 < named(events, "step")[-1]["mfu"] < 1


def test_a_collapse_is_warned_of_and_stops_training_where_asked(tmp_path: Path) -> None:
    collapse = {"sample_size": 16, "grace_steps": 3, "min_rankme": 15.9, "max_center_norm": 1, "patience": 2}
    warned = train(tmp_path / "warned", tiny_config(log_every_steps=1, collapse=collapse), 6)
    (warning,) = named(warned, "warning")
    assert re.search(r"step 3: teacher features hardly use .* floor 15\.9", warning["message"])
    stopping = tiny_config(log_every_steps=1, collapse={**collapse, "stop": True})
    with pytest.raises(PermanentError, match=r"step 4: training stops, the teacher has collapsed: .*RankMe"):
        train(tmp_path / "stopped", stopping, 6)


def test_watching_is_no_part_of_what_a_run_is() -> None:
    speed = {"peak_tflops": 700, "pack": False, "compile": True, "activation_checkpointing": True}
    watched = tiny_config(collapse={"stop": True}, tensorboard=True, **speed)
    assert watched.digest() == tiny_config().digest()


def test_tensorboards_files_lie_in_the_run_in_parts_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(progress, "_PART_BYTES", 2000)
    events = train(tmp_path, tiny_config(tensorboard=True, log_every_steps=1), 8)
    files = sorted((tmp_path / "tensorboard").iterdir())
    assert len(files) > 1 and max(file.stat().st_size for file in files) < 4000
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()  # type: ignore[no-untyped-call]
    shown = {point.step: point.value for point in curves.Scalars("loss")}  # type: ignore[no-untyped-call]
    assert shown == pytest.approx({event["step"]: event["loss"] for event in named(events, "step")})
    tags = set(curves.Tags()["scalars"])  # type: ignore[no-untyped-call]  # tensorboard has no types
    assert {"weight_decay", "momentum", "teacher_temperature", "last_layer_lr"} <= tags
    assert {"grad_norm", "grad_norm_backbone", "grad_norm_dino_head"} <= tags


def test_gauges_show_the_last_step_and_a_taken_port_is_only_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        monkeypatch.setenv(METRICS_PORT, str(taken.getsockname()[1]))
        events = train(tmp_path / "taken", tiny_config(), 1)
    assert "no metrics on port" in named(events, "warning")[0]["message"]

    from eosin.training.progress import _Gauges

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    gauges = _Gauges(port)
    try:
        gauges.show(3, {"loss": 4.25, "rankme": 7.5})
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    finally:
        gauges.close()
    assert "eosin_train_loss 4.25" in page and "eosin_train_rankme 7.5" in page
