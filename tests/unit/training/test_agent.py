"""When an agent gives up: at once on what no restart mends, and after restarts that lead nowhere."""

import os
from pathlib import Path

import pytest

from eosin.errors import PermanentError, TransientError, UserError
from eosin.training.elastic import agent
from eosin.training.elastic.agent import verdict
from eosin.training.elastic.reports import (
    FAILURES_DIR,
    report_exit,
    report_failure,
    report_round,
    report_start,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FAILURES_DIR, str(tmp_path))
    return tmp_path


def as_process(monkeypatch: pytest.MonkeyPatch, pid: int) -> None:
    monkeypatch.setattr("os.getpid", lambda: pid)


def start_at(monkeypatch: pytest.MonkeyPatch, steps: list[int | None], planned: tuple[int, ...] = ()) -> None:
    """Rounds of workers at 100 s, 101 s, …; None: they died before they knew their step."""
    folder = Path(os.environ[FAILURES_DIR])
    for pid, step in enumerate(steps, start=100):
        as_process(monkeypatch, pid)
        monkeypatch.setattr("time.time", lambda at=float(pid): at)
        monkeypatch.setattr("time.time_ns", lambda at=pid: at)
        report_round(folder, is_planned=pid - 100 in planned)
        if step is not None:
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
        ([None] * 4, False),
        ([None] * 5, True),
        ([0, None, None, None, None], True),
        ([0, None, None, 5, None], False),
        ([5, None, 5, None, 5], True),
    ],
)
def test_every_round_that_leads_nowhere_is_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int | None], stops: bool
) -> None:
    start_at(monkeypatch, steps)
    found = verdict(folder, 3)
    assert (found is not None) == stops
    if found is not None:
        known = [step for step in steps if step is not None]
        assert (f"from step {known[-1]}" if known else "before any step") in found.message
        assert isinstance(found.to_error(), PermanentError)


def fail_at(monkeypatch: pytest.MonkeyPatch, time_s: float, rank: int, error: Exception) -> None:
    as_process(monkeypatch, int(10 * time_s) + rank)
    monkeypatch.setattr("time.time", lambda: time_s)
    report_failure(error, rank)


@pytest.mark.parametrize("rounds", [4, 5])
def test_a_store_that_stays_away_before_any_start_ends_as_transient(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    start_at(monkeypatch, [None] * rounds)
    for number in range(rounds):
        for rank in (0, 1):
            fail_at(monkeypatch, 100.5 + number, rank, TransientError("S3 answered 500", hint="wait"))
    found = verdict(folder, 3)
    assert (found is not None) == (rounds > 4)
    if found is not None:
        assert isinstance(found.to_error(), TransientError)
        assert (found.message, found.hint) == ("S3 answered 500", "wait")


def test_rounds_after_planned_changes_of_the_world_are_not_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_at(monkeypatch, [0] * 9, planned=(1, 2, 4, 5, 7))
    assert verdict(folder, 3) is None


def test_a_death_that_nobody_reported_is_named_by_its_signal(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_at(monkeypatch, [None] * 5)
    report_exit(folder, -9, 7)
    monkeypatch.setattr(agent, "oom_kills", lambda: 0)
    found = verdict(folder, 3)
    assert found is not None and "killed by SIGKILL" in found.message
    monkeypatch.setattr("time.time", lambda: 105.0)
    report_exit(folder, 2, 8)
    found = verdict(folder, 3)
    assert found is not None and "exit code 2" in found.message


def test_a_death_for_memory_is_named_as_that_whatever_the_others_say(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_at(monkeypatch, [0, 0, None, None, None])
    fail_at(monkeypatch, 104.5, 1, RuntimeError("connection closed by peer"))
    monkeypatch.setenv("EOSIN_OOM_KILLS", "2")
    monkeypatch.setattr(agent, "oom_kills", lambda: 6)
    found = verdict(folder, 3)
    assert found is not None and isinstance(found.to_error(), PermanentError)
    assert "killed 4 processes of this container for memory" in found.message and "`memory`" in found.hint
    monkeypatch.setenv("EOSIN_IN_POD", "1")
    assert agent._exit_code(folder, found) == 43, "another pod of this pool would not do better"


def test_starts_that_lead_nowhere_for_want_of_the_store_end_as_transient(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_at(monkeypatch, [7] * 5)
    fail_at(monkeypatch, 103.5, 0, TransientError("S3 answered 503"))
    fail_at(monkeypatch, 103.6, 1, RuntimeError("connection closed by peer"))
    found = verdict(folder, 3)
    assert found is not None and isinstance(found.to_error(), TransientError)
    assert found.message == "S3 answered 503"


def test_a_blip_of_the_store_long_ago_does_not_excuse_a_crash(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_at(monkeypatch, [7] * 5)
    fail_at(monkeypatch, 100.5, 0, TransientError("S3 answered 503"))
    fail_at(monkeypatch, 103.6, 0, RuntimeError("out of memory"))
    found = verdict(folder, 3)
    assert found is not None and isinstance(found.to_error(), PermanentError)
    assert "out of memory" in found.message


def test_one_start_of_a_node_is_counted_whatever_its_workers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for local_rank in range(4):
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        start_at(monkeypatch, [0] * 3)
    assert verdict(folder, 3) is None
