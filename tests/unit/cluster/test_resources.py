"""Waiting for an object to go: gone, replaced by another of its name, or held by a finalizer."""

from types import SimpleNamespace
from typing import Any

import pytest

from eosin.cluster.names import JOB
from eosin.cluster.resources import delete_and_wait
from eosin.errors import TransientError

GOING = {"metadata": {"name": "run-7", "uid": "a"}}
ANOTHER = {"metadata": {"name": "run-7", "uid": "b"}}


def _wait(found: list[dict[str, Any] | None], timeout_s: float = 20) -> float:
    """Waits while `found` is read one by one; how many seconds it slept."""
    slept: list[float] = []
    cluster: Any = SimpleNamespace(namespace="n", delete=lambda *_, **__: None, get=lambda *_: found.pop(0))
    delete_and_wait(cluster, JOB, GOING, timeout_s=timeout_s, sleep=slept.append)
    return sum(slept)


@pytest.mark.parametrize("end", [None, ANOTHER], ids=["gone", "another"])
def test_it_waits_as_long_as_the_same_object_is_there(end: dict[str, Any] | None) -> None:
    found = [GOING, GOING, GOING, end, GOING]
    assert _wait(found) > 0
    assert found == [GOING]


def test_one_that_stays_is_reported_with_what_to_look_at() -> None:
    with pytest.raises(TransientError, match=r"Job run-7 is still being deleted after 20 s") as caught:
        _wait([GOING] * 1000)
    assert "kubectl -n n get pods" in caught.value.hint
