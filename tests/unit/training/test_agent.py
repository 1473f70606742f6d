"""When an agent gives up: at once on what no restart mends, and after restarts that lead nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from eosin.errors import PermanentError, TransientError, UserError
from eosin.training.agent import verdict
from eosin.training.failures import FAILURES_DIR, report_failure, report_start


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FAILURES_DIR, str(tmp_path))
    return tmp_path


def as_process(monkeypatch: pytest.MonkeyPatch, pid: int) -> None:
    monkeypatch.setattr("os.getpid", lambda: pid)


def start_at(monkeypatch: pytest.MonkeyPatch, steps: list[int]) -> None:
    for pid, step in enumerate(steps, start=100):
        as_process(monkeypatch, pid)
        monkeypatch.setattr("time.time", lambda at=float(pid): at)
        report_start(step)


def test_a_users_error_wins_over_the_crash_it_caused_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_process(monkeypatch, 1)
    report_failure(RuntimeError("connection reset by peer"), 1)
    assert verdict(folder, 3) is None
    as_process(monkeypatch, 2)
    report_failure(UserError("the key is wrong", hint="change it"), 0)
    found = verdict(folder, 3)
    assert found is not None and isinstance(found.to_error(), UserError)
    assert (found.message, found.hint) == ("the key is wrong", "change it")


def test_the_rank_that_names_the_patches_is_heard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pid, text in ((1, "step 3: not finite"), (2, "step 3: not finite; patches: slide a")):
        as_process(monkeypatch, pid)
        report_failure(PermanentError(text), pid)
    found = verdict(folder, 3)
    assert found is not None and "slide a" in found.message


def test_transient_errors_are_left_to_torchrun(folder: Path) -> None:
    report_failure(TransientError("the store is slow"), 0)
    assert verdict(folder, 3) is None


@pytest.mark.parametrize(
    ("steps", "stops"),
    [
        ([0], False),
        ([0, 0, 0, 0], False),
        ([0] * 5, True),
        ([0, 0, 0, 5, 5], False),
        ([0, 5, 5, 5, 5, 5], True),
    ],
)
def test_starts_from_one_step_are_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int], stops: bool
) -> None:
    start_at(monkeypatch, steps)
    found = verdict(folder, 3)
    assert (found is not None) == stops
    if found is not None:
        assert f"from step {steps[-1]}" in found.message
        assert isinstance(found.to_error(), PermanentError)
