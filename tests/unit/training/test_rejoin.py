"""An agent that loses the rendezvous store joins again, but not for ever and not once the run has ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed import DistNetworkError
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousConnectionError

from eosin.training.elastic.failures import FAILURES_DIR, report_start
from eosin.training.elastic.rejoin import is_lost_rendezvous, may_rejoin


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RendezvousConnectionError("the store has gone"), True),
        (DistNetworkError("broken pipe"), True),
        (RendezvousClosedError("the others have ended"), False),
        (RuntimeError("a defect"), False),
    ],
)
def test_only_a_lost_store_is_joined_again(error: Exception, lost: bool) -> None:
    assert is_lost_rendezvous(error) == lost


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setenv("EOSIN_RENDEZVOUS_LOST_SINCE", "inf")
    monkeypatch.setattr("time.time", lambda: now[0])
    return now


def test_patience_ends_where_nothing_starts_and_begins_anew_where_it_does(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAILURES_DIR, str(tmp_path))
    tried = []
    for clock[0] in (1000.0, 1050.0, 1099.0, 1101.0):
        tried.append(may_rejoin(tmp_path, 100))
    assert tried == [True, True, True, False]
    clock[0] = 1110.0
    report_start(5)
    clock[0] = 1300.0
    assert may_rejoin(tmp_path, 100)
    clock[0] = 1401.0
    assert not may_rejoin(tmp_path, 100)


def test_no_patience_is_none(tmp_path: Path, clock: list[float]) -> None:
    assert not may_rejoin(tmp_path, 0)
