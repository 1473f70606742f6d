"""A node struck from the list counts as a reason to meet again; a whole world does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

from eosin.training.elastic.lost_nodes import notice_lost_nodes


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> type[DynamicRendezvousHandler]:
    joined = lambda self: SimpleNamespace(world_size=len(self._state_holder.state.participants))  # noqa: E731
    monkeypatch.setattr(DynamicRendezvousHandler, "next_rendezvous", joined)
    monkeypatch.setattr(DynamicRendezvousHandler, "num_nodes_waiting", lambda self: self.waiting)
    notice_lost_nodes()
    return DynamicRendezvousHandler


def handler(kind: type[DynamicRendezvousHandler], *nodes: str) -> Any:
    found: Any = object.__new__(kind)
    found.waiting = 0
    found._state_holder = SimpleNamespace(state=SimpleNamespace(participants=dict.fromkeys(nodes)))
    return found


def test_a_struck_node_counts_until_the_world_has_met_again(
    patched: type[DynamicRendezvousHandler], capfd: pytest.CaptureFixture[str]
) -> None:
    found = handler(patched, "a", "b", "c")
    assert found.num_nodes_waiting() == 0, "it has not joined yet"
    found.next_rendezvous()
    assert found.num_nodes_waiting() == 0
    del found._state_holder.state.participants["b"]
    assert found.num_nodes_waiting() == 1
    assert "1 of 3 nodes sent no keep-alive" in capfd.readouterr().err
    found.next_rendezvous()
    assert found.num_nodes_waiting() == 0


def test_nodes_that_wait_are_counted_as_ever(patched: type[DynamicRendezvousHandler]) -> None:
    found = handler(patched, "a")
    found.next_rendezvous()
    found.waiting = 2
    assert found.num_nodes_waiting() == 2


def test_another_torch_changes_nothing(patched: type[DynamicRendezvousHandler]) -> None:
    found = handler(patched, "a", "b")
    found.next_rendezvous()
    del found._state_holder
    assert found.num_nodes_waiting() == 0
