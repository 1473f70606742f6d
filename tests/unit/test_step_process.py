"""What a step does with its errors: waits out what may pass, and reports the last one where people look."""

import json
from pathlib import Path
from typing import Any

import pytest

from eosin import step_process
from eosin.config import RunConfig, dump_config
from eosin.errors import PermanentError, TransientError, UserError
from eosin.layout import RunLayout
from eosin.records import StepFailure, load_record
from eosin.status import read_logs, run_status
from eosin.step_process import PATIENCE, as_step, patiently, publish_silent_failure
from eosin.storage import Store, open_store


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name in ("KUBERNETES_SERVICE_HOST", "EOSIN_RUNNER_PID", PATIENCE):
        monkeypatch.delenv(name, raising=False)
    store = open_store(f"file://{tmp_path}/run")
    store.put(RunLayout.CONFIG, dump_config(RunConfig()).encode())
    return store


class Clock:
    """Time that passes in calls and sleeps alone."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


def failing(times: int, kind: type[Exception] = TransientError) -> Any:
    left = [times]

    def call() -> str:
        if left[0]:
            left[0] -= 1
            raise kind("the bucket is away")
        return "done"

    return call


def test_what_may_pass_is_waited_out_with_growing_pauses() -> None:
    clock = Clock()
    assert patiently(failing(4), patience_s=1800, sleep=clock.sleep, clock=clock) == "done"
    assert len(clock.slept) == 4 and clock.slept[0] < 10 < clock.slept[-1]


def test_it_is_given_up_after_the_stated_time() -> None:
    clock = Clock()
    with pytest.raises(TransientError):
        patiently(failing(10_000), patience_s=600, sleep=clock.sleep, clock=clock)
    assert clock.now_s == pytest.approx(600)


def test_a_call_that_worked_for_long_begins_anew() -> None:
    """A training of days meets more than half an hour of trouble in all."""
    clock, times = Clock(), [0]

    def call() -> str:
        times[0] += 1
        clock.now_s += 10_000
        if times[0] < 30:
            raise TransientError("evicted")
        return "done"

    assert patiently(call, patience_s=600, sleep=clock.sleep, clock=clock) == "done"


@pytest.mark.parametrize("kind", [UserError, PermanentError, ValueError])
def test_what_no_retry_mends_is_not_tried_again(kind: type[Exception]) -> None:
    clock = Clock()
    with pytest.raises(kind):
        patiently(failing(1, kind), patience_s=1800, sleep=clock.sleep, clock=clock)
    assert clock.slept == []


def index_shard(run_uri: str, shard: int, error: Exception | None = None) -> int:
    if error:
        raise error
    return shard


def test_the_last_error_stands_in_status_and_logs_until_the_step_succeeds(run: Store) -> None:
    error = UserError("slide a.svs has no mpp", hint="add it to the overrides")
    for _ in range(2):
        with pytest.raises(SystemExit):
            as_step(index_shard, run.uri, 3, error)
    (failure,) = run_status(run.uri).failures
    assert (failure.step, failure.message, failure.hint) == ("index-shard-00003", error.message, error.hint)
    assert (failure.exit_code, failure.attempt, failure.kind) == (2, 2, "UserError")
    first, second = str(run_status(run.uri)).splitlines()[1:3]
    assert "index-shard-00003: slide a.svs has no mpp" in first and "attempt 2" in first
    assert "add it to the overrides" in second
    assert [line.fields["message"] for line in read_logs(run.uri, "index-shard")] == [error.message] * 2
    assert as_step(index_shard, run.uri, 3) == 3
    assert run_status(run.uri).failures == ()


def test_in_a_pod_a_run_that_was_never_planned_says_why(
    run: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.delete([RunLayout.CONFIG])
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr(step_process, "_TERMINATION_LOG", tmp_path / "termination-log")
    with pytest.raises(SystemExit):
        as_step(index_shard, run.uri, 0, UserError("there is no recipe x"))
    assert "there is no recipe x" in str(run_status(run.uri))


def test_an_event_that_the_pods_log_repeats_is_shown_once(run: Store) -> None:
    step = {"time": "2026-01-01T00:00:01Z", "source": "train", "event": "step", "step": 1}
    only_here = {"time": "2026-01-01T00:00:02Z", "source": "watcher", "event": "ending"}
    run.put(RunLayout.log("train", "a"), f"{json.dumps(step)}\n".encode())
    texts = [json.dumps(step), json.dumps(only_here), "plain", "plain"]
    mirrored = [
        {"time": "2026-01-01T00:00:03Z", "source": "pods/x", "event": "line", "text": t} for t in texts
    ]
    run.put(RunLayout.log("pods/x", "a"), "\n".join(map(json.dumps, mirrored)).encode())
    shown = [line.fields.get("text") or line.fields["event"] for line in read_logs(run.uri)]
    assert shown == ["step", json.dumps(only_here), "plain", "plain"]
    assert len(read_logs(run.uri, "pods")) == 4


def test_a_pod_that_could_not_speak_is_reported_unless_its_step_has(run: Store) -> None:
    evicted = StepFailure(step="train", message="its pod ended: OOMKilled", hint="eosin resume RUN",
                          exit_code=137, time="2026-01-01T00:00:00Z")  # fmt: skip
    publish_silent_failure(run.uri, evicted)
    found = load_record(StepFailure, run, RunLayout.failure("train"))
    assert found is not None and found.hint == f"eosin resume {run.uri}"
    publish_silent_failure(run.uri, evicted.model_copy(update={"message": "other"}))
    assert load_record(StepFailure, run, RunLayout.failure("train")) == found


def test_the_pods_termination_message_is_the_sentence_and_its_hint(
    run: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = tmp_path / "termination-log"
    monkeypatch.setattr(step_process, "_TERMINATION_LOG", message)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(SystemExit):
        as_step(index_shard, run.uri, 0, UserError("no such bucket", hint="make it"))
    assert message.read_text() == "no such bucket\n  make it"


def test_the_charts_endpoint_is_taken_where_the_secret_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EOSIN_AWS_ENDPOINT_URL", "http://store")
    monkeypatch.setenv("EOSIN_AWS_REGION", "eu-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_REGION", "of-the-secret")
    step_process.take_store_access()
    import os

    assert (os.environ["AWS_ENDPOINT_URL"], os.environ["AWS_REGION"]) == ("http://store", "of-the-secret")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
