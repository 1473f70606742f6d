"""What a failed JobSet's pods tell: the cause before its consequences, and an error of the right kind."""

from typing import Any

import pytest

from eosin.cluster.failure import explain_failure, pod_failures, stuck_pods
from eosin.errors import EosinError, PermanentError, TransientError, UserError

JOBSET = {"metadata": {"name": "js", "namespace": "ns"}}


def pod(name: str, code: int, *, reason: str = "Error", at: int = 0, evicted: bool = False) -> dict[str, Any]:
    end = {"exitCode": code, "reason": reason, "finishedAt": f"2026-01-01T00:00:{at:02d}Z"}
    conditions = [{"type": "DisruptionTarget", "status": "True"}] if evicted else []
    statuses = [{"name": "trainer", "state": {"terminated": end}}]
    return {"metadata": {"name": name}, "status": {"conditions": conditions, "containerStatuses": statuses}}


def first(*pods: dict[str, Any]) -> str:
    return pod_failures(pods)[0].pod


def test_first_to_end_is_the_cause_and_the_rest_its_consequences() -> None:
    assert first(pod("c", 1, at=9), pod("a", 139, at=3), pod("b", 1, at=5)) == "a"


def test_memory_and_configuration_explain_more_than_being_first() -> None:
    early, memory, config = pod("a", 1), pod("b", 137, reason="OOMKilled", at=8), pod("c", 42, at=9)
    assert first(early, memory) == "b"
    assert first(early, memory, config) == "c"


def test_evicted_pod_is_blamed_last_and_a_clean_end_never() -> None:
    assert first(pod("a", 143, evicted=True), pod("b", 1, at=50)) == "b"
    assert [
        failure.pod for failure in pod_failures([pod("a", 0), {"metadata": {"name": "p"}, "status": {}}])
    ] == []


def test_container_that_was_restarted_is_judged_by_its_last_end() -> None:
    end = {"exitCode": 3, "reason": "Error", "finishedAt": None}
    statuses = [{"name": "rendezvous", "state": {"running": {}}, "lastState": {"terminated": end}}]
    (failure,) = pod_failures([{"metadata": {"name": "p"}, "status": {"containerStatuses": statuses}}])
    assert (failure.exit_code, failure.finished_at) == (3, "")


@pytest.mark.parametrize(
    ("failed", "kind", "words"),
    [
        (pod("p", 42), UserError, "configuration error"),
        (pod("p", 137, reason="OOMKilled"), PermanentError, "for memory"),
        (pod("p", 43), PermanentError, "exited with 43"),
        (pod("p", 75), TransientError, "exited with 75"),
        (pod("p", 143, evicted=True), TransientError, "exited with 143"),
        (pod("p", 139), PermanentError, "exited with 139"),
    ],
)
def test_kind_of_error_says_whether_to_try_again(
    failed: dict[str, Any], kind: type[EosinError], words: str
) -> None:
    error = explain_failure(JOBSET, [failed], lambda failure: ["Traceback", "ValueError: boom", ""])
    assert type(error) is kind
    assert words in error.message
    assert error.message.endswith("Traceback | ValueError: boom")
    assert error.hint


def test_agents_own_verdict_is_quoted_before_the_lines_around_it() -> None:
    lines = ["loss 3.1", "agent: the loss is not finite at step 12", "torch: destroyed"]
    assert explain_failure(JOBSET, [pod("p", 1)], lambda failure: lines).message.endswith(
        "(Error): the loss is not finite at step 12"
    )


def test_agents_own_hint_is_kept_for_exit_42_and_43() -> None:
    lines = ["loss 3.1", "agent: step 12: the loss is not finite", "  lower train.optimizer.lr", "torch: bye"]
    for code in (42, 43):
        error = explain_failure(JOBSET, [pod("p", code)], lambda failure: lines)
        assert error.message.endswith("step 12: the loss is not finite")
        assert error.hint == "lower train.optimizer.lr"
    assert explain_failure(JOBSET, [pod("p", 43)], lambda failure: lines[:2]).hint.startswith(
        "no retry mends this"
    )


def test_pod_without_a_log_says_so() -> None:
    assert "it wrote no log" in explain_failure(JOBSET, [pod("p", 1)], lambda failure: []).message


@pytest.mark.parametrize(
    ("reason", "before"),
    [("ImagePullBackOff", "image reg/x:1 cannot be pulled: "), ("CreateContainerConfigError", "")],
)
def test_stuck_pods_are_those_that_never_mend(reason: str, before: str) -> None:
    container = {"image": "reg/x:1", "state": {"waiting": {"reason": reason, "message": "why"}}}
    stuck = {"metadata": {"name": "a"}, "status": {"containerStatuses": [container]}}
    creating = {"metadata": {"name": "b"}, "status": {
        "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}}  # fmt: skip
    assert stuck_pods([stuck, creating, {"metadata": {"name": "c"}}]) == {"a": f"{before}{reason}: why"}
