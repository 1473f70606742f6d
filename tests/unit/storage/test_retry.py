"""Retries are bounded in number and time, spread, and only for what may pass."""

import pytest

from eosin.errors import PermanentError, TransientError
from eosin.storage import retry
from eosin.storage.retry import RetryPolicy


class Flaky:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


QUICK = RetryPolicy(max_attempts=4, base_s=0.001, cap_s=0.002)


def test_what_passes_in_time_is_not_noticed() -> None:
    flaky = Flaky(*[TransientError("later")] * 3)
    assert retry.call(flaky, QUICK) == "done"
    assert flaky.calls == 4


def test_the_last_error_is_kept_with_hint_and_count() -> None:
    flaky = Flaky(*[TransientError("busy", hint="wait")] * 9)
    with pytest.raises(TransientError, match=r"busy \(after 4 tries\)") as caught:
        retry.call(flaky, QUICK)
    assert (caught.value.hint, flaky.calls) == ("wait", 4)


@pytest.mark.parametrize("error", [PermanentError("no"), KeyError("k"), ValueError("v")])
def test_other_errors_pass_at_once(error: Exception) -> None:
    flaky = Flaky(error)
    with pytest.raises(type(error)):
        retry.call(flaky, QUICK)
    assert flaky.calls == 1


def test_waits_grow_to_the_cap_and_differ() -> None:
    policy = RetryPolicy(max_attempts=40, base_s=0.1, cap_s=5, deadline_s=1e9)
    many = [list(policy.waits_s()) for _ in range(50)]
    assert all(len(waits) == 39 for waits in many)
    assert max(waits[0] for waits in many) <= 0.1
    assert 2.5 < max(waits[30] for waits in many) <= 5
    assert len({waits[5] for waits in many}) == 50


def test_no_wait_goes_past_the_deadline() -> None:
    clock = [0.0]
    policy = RetryPolicy(max_attempts=1000, base_s=1, cap_s=4, deadline_s=20)
    for wait_s in policy.waits_s(lambda: clock[0]):
        clock[0] += wait_s
        assert clock[0] <= 20
    assert clock[0] > 0


def test_the_environment_sets_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EOSIN_RETRY_MAX_ATTEMPTS", "3")
    monkeypatch.setenv("EOSIN_RETRY_DEADLINE_S", "7.5")
    policy = RetryPolicy.from_env()
    assert (policy.max_attempts, policy.deadline_s, policy.base_s) == (3, 7.5, RetryPolicy.base_s)


def test_a_long_wait_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(retry, "_SILENCE_S", 0.0)
    monkeypatch.setattr(retry, "_told_s", float("-inf"))
    retry.call(Flaky(*[TransientError("s3://b/k does not answer")] * 3), QUICK)
    assert [record.getMessage() for record in caplog.records] == ["trying again: s3://b/k does not answer"]


def test_a_short_wait_is_not_worth_a_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retry, "_told_s", float("-inf"))
    retry.call(Flaky(*[TransientError("busy")] * 3), QUICK)
    assert caplog.records == []
