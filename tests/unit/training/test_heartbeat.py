"""A worker that finishes no step is killed with its node's others; one that has not begun is left alone."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eosin.training.elastic.reports import FAILURES_DIR, Heartbeat, kill_hanging


@pytest.fixture
def workers() -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_one_hanging_worker_ends_all_of_the_node(
    tmp_path: Path, workers: list[subprocess.Popen[bytes]]
) -> None:
    pids = [process.pid for process in workers]
    for pid in pids:
        (tmp_path / f"heartbeat-{pid}").touch()
    assert not kill_hanging(tmp_path, pids, 30)
    old_s = time.monotonic() - 40
    os.utime(tmp_path / f"heartbeat-{pids[1]}", (old_s, old_s))
    assert kill_hanging(tmp_path, pids, 30)
    assert [process.wait(10) for process in workers] == [-9, -9]
    assert not kill_hanging(tmp_path, pids, 30)


def test_a_worker_before_its_first_step_or_after_its_last_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAILURES_DIR, str(tmp_path))
    heartbeat, own = Heartbeat(), os.getpid()
    assert not kill_hanging(tmp_path, [own], 0)
    heartbeat.beat()
    assert (tmp_path / f"heartbeat-{own}").exists()
    heartbeat.stop()
    assert not kill_hanging(tmp_path, [own], 0)


def test_a_clock_that_is_set_forward_kills_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAILURES_DIR, str(tmp_path))
    Heartbeat().beat()
    later_s = time.time() + 3600
    monkeypatch.setattr("time.time", lambda: later_s)
    assert not kill_hanging(tmp_path, [os.getpid()], 30)


def test_without_an_agent_it_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FAILURES_DIR, raising=False)
    Heartbeat().beat()
    Heartbeat().stop()
