"""Training under real agents and workers: killed, told to go, refused, stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from eosin.config import RunConfig
from eosin.errors import PermanentError, UserError
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.records import TeacherCard, TrainingDone
from eosin.storage import open_store
from eosin.training.train import train
from tests.support.ranks import Leg, final_parameters, train_legs
from tests.support.training_run import POISONED_STEP, STEP_DELAY_S, begin, tiny_config

REPOSITORY = Path(__file__).resolve().parents[3]
WORKER = "tests.support.training_run"
LAUNCHER = f"""
import sys
from eosin.observability import RunLog
from eosin.training.train import train
train(sys.argv[1], log=RunLog("launch"), worker="{WORKER}")
"""
WORKER_ENDS = {
    "kill a worker": signal.SIGKILL,
    "kill the workers": signal.SIGKILL,
    "tell the workers to go": signal.SIGTERM,
}
# Bits are compared, and shares that follow the measured speed sum in another order.
TWO_WORKERS = {"workers_per_node": 2, "load_balance": "even"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    return str(tmp_path / "runs of a täst")


def processes_of(run_uri: str) -> list[int]:
    """Every process, in any session, whose command line names the run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if run_uri.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(set(found) - {os.getpid()})


def workers_of(run_uri: str) -> list[int]:
    """Training processes alone, without launcher and agent."""
    return [
        pid
        for pid in processes_of(run_uri)
        if b"--nproc-per-node" not in (cmdline := Path(f"/proc/{pid}/cmdline").read_bytes())
        and WORKER.encode() in cmdline
        and b"-c\0" not in cmdline
    ]


def until(condition: object, timeout_s: float = 240) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline_s, "timed out"
        time.sleep(0.02)


@pytest.fixture
def launched(run_uri: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Launchers of the run; whatever is left of them is killed at the end."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()
    for pid in processes_of(run_uri):
        os.kill(pid, signal.SIGKILL)


def launch(run_uri: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", LAUNCHER, run_uri], cwd=REPOSITORY)


def steps_logged(run_uri: str) -> int:
    """The last step the run's own log names."""
    steps = [0]
    for path in Path(run_uri).glob("logs/train/*.jsonl"):
        steps += [json.loads(line).get("step", 0) or 0 for line in path.read_text().splitlines()]
    return max(steps)


def durable_step(run_uri: str) -> int:
    markers = Path(run_uri).glob("checkpoints/*/COMPLETE.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in markers), default=0)


def disturb(kind: str, process: subprocess.Popen[bytes], run_uri: str) -> None:
    """Do one violent thing to the run."""
    if kind in WORKER_ENDS:
        for pid in workers_of(run_uri)[: 1 if kind == "kill a worker" else None]:
            os.kill(pid, WORKER_ENDS[kind])
        return
    process.send_signal(signal.SIGKILL if kind == "kill the launcher" else signal.SIGTERM)
    process.wait(120)
    until(lambda: not processes_of(run_uri), 120)


def final_difference(
    run_uri: str, config: RunConfig, undisturbed: dict[str, torch.Tensor], num_steps: int
) -> list[str]:
    """Names of the parameters that do not end with the same bits."""
    ended = final_parameters(Path(run_uri), config, num_steps)
    assert ended.keys() == undisturbed.keys()
    return [name for name, value in undisturbed.items() if not torch.equal(value, ended[name])]


def campaign(
    kinds: list[str],
    num_steps: int,
    run_uri: str,
    folder: Path,
    launched: list[subprocess.Popen[bytes]],
    parallel: str = "ddp",
) -> None:
    """Disturb a run once for each of `kinds`, at random moments of its progress, then let it end."""
    config = begin(
        run_uri,
        tiny_config(num_steps=num_steps, checkpoint_every_steps=3, elastic=TWO_WORKERS, parallel=parallel),
    )
    rng = random.Random(11)
    launched.append(launch(run_uri))
    for kind in kinds:
        reached = durable_step(run_uri)
        until(lambda goal=reached: durable_step(run_uri) > goal)
        time.sleep(rng.uniform(0, 1.0))
        if durable_step(run_uri) == num_steps:
            pytest.fail("the run ended before it was disturbed: make steps slower")
        disturb(kind, launched[-1], run_uri)
        if kind not in WORKER_ENDS:
            launched.append(launch(run_uri))
    assert launched[-1].wait(900) == 0
    assert not processes_of(run_uri)
    done = TrainingDone.from_json(open_store(run_uri).get(RunLayout.TRAINING_DONE), source="done")
    assert (done.num_steps, done.config_digest) == (num_steps, config.digest())
    for model in done.models:
        TeacherCard.from_json(open_store(run_uri).get(RunLayout.teacher_card(model)), source=model)
    undisturbed = train_legs(config, folder / "undisturbed", [Leg(2, num_steps)])
    assert final_difference(run_uri, config, undisturbed, num_steps) == []


@pytest.mark.e2e
def test_killed_three_times_it_ends_with_the_bits_of_the_undisturbed_run(
    run_uri: str, tmp_path: Path, launched: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STEP_DELAY_S, "0.03")
    kinds = ["kill a worker", "tell the workers to go", "kill the launcher"]
    campaign(kinds, 60, run_uri, tmp_path, launched)
    # A run that has ended is left alone: no process, no step.
    monkeypatch.setattr("eosin.training.train._run_agents", lambda *_: pytest.fail("started again"))
    assert train(run_uri, log=RunLog("test")).num_steps == 60


@pytest.mark.e2e
def test_shards_killed_twice_end_with_the_bits_of_the_undisturbed_run(
    run_uri: str, tmp_path: Path, launched: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STEP_DELAY_S, "0.02")
    campaign(["kill a worker", "kill the launcher"], 24, run_uri, tmp_path, launched, "fsdp")


@pytest.mark.e2e
@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_killed_twenty_times_it_ends_with_the_bits_of_the_undisturbed_run(
    run_uri: str,
    tmp_path: Path,
    launched: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    parallel: str,
) -> None:
    """Twenty times SIGKILL: of one worker, of all, of the launcher, which takes all with it."""
    monkeypatch.setenv(STEP_DELAY_S, "0.05")
    rng = random.Random(4)
    kinds = rng.choices(["kill a worker", "kill the workers", "kill the launcher"], [10, 4, 6], k=20)
    campaign(kinds, 300, run_uri, tmp_path, launched, parallel)


@pytest.mark.e2e
@pytest.mark.long
@pytest.mark.timeout(3000)
def test_told_to_go_and_killed_in_turns_it_ends_with_the_bits_of_the_undisturbed_run(
    run_uri: str, tmp_path: Path, launched: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STEP_DELAY_S, "0.05")
    rng = random.Random(4)
    kinds = rng.choices([*WORKER_ENDS, "kill the launcher", "tell the launcher to go"], k=10)
    campaign(kinds, 200, run_uri, tmp_path, launched)


@pytest.mark.e2e
def test_an_infinite_loss_stops_before_anything_moves_and_names_its_patches(
    run_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POISONED_STEP, "4")
    begin(run_uri, tiny_config(elastic=TWO_WORKERS, checkpoint_every_steps=4))
    with pytest.raises(PermanentError) as raised:
        train(run_uri, log=RunLog("test"), worker=WORKER)
    text = raised.value.message
    assert "step 4" in text and "microbatches [5]" in text
    assert "slide-3.svs at (100, 3), 0.5 mpp" in text and "slide-4.svs at (110, 3)" in text
    assert durable_step(run_uri) == 4
    assert not open_store(run_uri).exists(RunLayout.TRAINING_DONE)
    assert not processes_of(run_uri)


@pytest.mark.e2e
def test_a_users_error_in_a_worker_ends_training_at_once_with_its_line(run_uri: str) -> None:
    missing = f"{run_uri}/nowhere/model.safetensors"
    begin(run_uri, tiny_config(elastic={"workers_per_node": 1}, model={"init": missing}))
    with pytest.raises(UserError, match=r"there is no .*nowhere/model.safetensors"):
        train(run_uri, log=RunLog("test"), worker=WORKER)
    assert not processes_of(run_uri)


def test_what_cannot_be_trained_is_refused_before_a_process_starts(
    run_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eosin.training.train._run_agents", lambda *_: pytest.fail("started"))
    begin(run_uri, tiny_config(elastic={"workers_per_node": 9}))
    with pytest.raises(UserError, match=r"9 workers \(1 nodes × 9\) for 8 microbatches: 1 would"):
        train(run_uri, log=RunLog("test"), worker=WORKER)


def test_an_agent_that_fails_after_the_end_does_not_fail_the_training(
    run_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = begin(run_uri, tiny_config())
    done = TrainingDone(num_steps=20, models=(), snapshot_id="", config_digest=config.digest())

    def end_and_fail(*_: object) -> None:
        open_store(run_uri).put(RunLayout.TRAINING_DONE, done.to_json())
        raise PermanentError("training ended with exit code 1")

    monkeypatch.setattr("eosin.training.train._run_agents", end_and_fail)
    assert train(run_uri, log=RunLog("test")) == done
