"""Steps that ended without a word, as Argo's record of a run tells them."""

from typing import Any

from eosin.cluster.finish import silent_failures

PATH = "eosin-pretrain-x.root.exit-handler-1"


def node(name: str, kind: str = "Pod", phase: str = "Failed", **more: Any) -> dict[str, Any]:
    shown = name.rpartition(".")[2]
    return {
        "id": "pod-1",
        "name": f"{PATH}.{name}",
        "displayName": shown,
        "type": kind,
        "phase": phase,
        **more,
    }


def failures(**nodes: dict[str, Any]) -> list[tuple[str, int, str]]:
    found = silent_failures({"status": {"nodes": nodes}})
    return [(each.step, each.exit_code, each.message) for each in found]


def test_a_failed_pod_is_told_with_its_step_its_code_and_argos_words() -> None:
    evicted = node(
        "train.executor", message="The node was low on resource: memory.", finishedAt="2026-01-01T00:00:00Z"
    )
    killed = node("for-loop-4.evaluate.executor(0)", message="OOMKilled (exit code 137)")
    assert failures(a=evicted, b=killed) == [
        ("train", 0, "its pod ended: The node was low on resource: memory."),
        ("evaluate", 137, "its pod ended: OOMKilled (exit code 137)"),
    ]


def test_an_attempt_that_a_later_one_made_good_drivers_and_what_succeeded_are_left_out() -> None:
    assert failures(
        first=node("train.executor(0)", phase="Error", message="pod deleted"),
        second=node("train.executor(1)", phase="Succeeded"),
        both=node("train.executor", "Retry", "Succeeded", children=["first", "second"]),
        driver=node("train-driver", message="driver failed"),
    ) == []  # fmt: skip


def test_an_attempt_whose_retries_all_failed_is_told() -> None:
    assert failures(
        first=node("train.executor(0)", message="Error (exit code 1)"),
        both=node("train.executor", "Retry", "Failed", children=["first"]),
    ) == [("train", 1, "its pod ended: Error (exit code 1)")]  # fmt: skip


def test_a_run_without_a_workflow_has_none() -> None:
    assert list(silent_failures(None)) == []
