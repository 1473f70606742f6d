"""Membership changes: a world that has ended, a node struck from the list, a lost rendezvous store."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed import DistNetworkError, DistStoreError, HashStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import SimpleElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    dynamic_rendezvous,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousSettings,
    RendezvousTimeout,
    _BackendRendezvousStateHolder,
    _NodeDesc,
    _RendezvousState,
)

from eosin.config import RunConfig, dump_config, load_config
from eosin.errors import EXIT_TRANSIENT
from eosin.layout import RunLayout
from eosin.records import TrainingDone
from eosin.storage import Store, open_store
from eosin.training.elastic import agent, membership
from eosin.training.elastic.membership import (
    follow_membership,
    is_lost_rendezvous,
    leave_when_done,
    may_rejoin,
)
from eosin.training.elastic.processes import Departure
from eosin.training.elastic.reports import FAILURES_DIR, Round, SnapshotRequests, read_reports, report_start

CONFIG: RunConfig = load_config("", overrides=["slides.uri=/slides", "train.num_steps=31"])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    store = open_store(str(tmp_path / "run"))
    store.put(RunLayout.CONFIG, dump_config(CONFIG).encode())
    folder = tmp_path / "failures"
    folder.mkdir()
    monkeypatch.setenv(FAILURES_DIR, str(folder))
    return store


def _agent_meets(error: Exception, run: Store, monkeypatch: pytest.MonkeyPatch) -> int:
    def meet(*_: object) -> int:
        raise error

    monkeypatch.setattr(agent, "_torchrun", meet)
    return agent.main(["--nnodes=1:4", "-m", "eosin.training.worker", run.uri])


def _end(run: Store, digest: str) -> None:
    done = TrainingDone(num_steps=31, models=(), snapshot_id="s", config_digest=digest)
    run.put(RunLayout.TRAINING_DONE, done.to_json())


def test_after_the_end_it_ends_as_the_others_did(
    run: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _end(run, CONFIG.digest())
    assert _agent_meets(RendezvousClosedError(), run, monkeypatch) == 0
    assert "has ended" in capfd.readouterr().err


@pytest.mark.parametrize("of_another", [False, True])
def test_before_the_end_it_is_to_be_tried_again(
    run: Store, of_another: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if of_another:
        _end(run, "of-another-config")
    assert _agent_meets(RendezvousClosedError(), run, monkeypatch) == EXIT_TRANSIENT
    assert "before training ended" in capfd.readouterr().err


def test_where_no_run_is_the_reason_is_said(
    run: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run.delete([RunLayout.CONFIG])
    assert _agent_meets(RendezvousClosedError(), run, monkeypatch) == EXIT_TRANSIENT
    assert "no run at" in capfd.readouterr().err


def test_a_rendezvous_that_is_lost_is_no_closed_one(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _end(run, CONFIG.digest())
    with pytest.raises(RendezvousConnectionError):
        _agent_meets(RendezvousConnectionError(), run, monkeypatch)


@pytest.mark.timeout(60)
def test_an_agent_whose_workers_are_done_does_not_wait_for_one_that_never_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    barrier: Any = SimpleElasticAgent._exit_barrier
    monkeypatch.setattr(SimpleElasticAgent, "_exit_barrier", barrier)  # so that it is put back
    leave_when_done()
    group = SimpleNamespace(state="SUCCEEDED", group_world_size=2)
    agent_of_two: Any = SimpleNamespace(_store=HashStore(), _worker_group=group, _exit_barrier_timeout=3600)
    leave: Any = SimpleElasticAgent._exit_barrier
    leave(agent_of_two)


@pytest.fixture
def patched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[DynamicRendezvousHandler]:
    joined = lambda self: SimpleNamespace(world_size=len(self._state_holder.state.participants))  # noqa: E731
    monkeypatch.setattr(DynamicRendezvousHandler, "next_rendezvous", joined)
    monkeypatch.setattr(DynamicRendezvousHandler, "num_nodes_waiting", lambda self: self.waiting)
    monkeypatch.setattr(DynamicRendezvousHandler, "shutdown", DynamicRendezvousHandler.shutdown)
    monkeypatch.delenv("EOSIN_RENDEZVOUS_LOST_SINCE", raising=False)
    monkeypatch.setattr(_BackendRendezvousStateHolder, "_sanitize", _BackendRendezvousStateHolder._sanitize)
    follow_membership(tmp_path, SnapshotRequests(tmp_path, 60), Departure())
    return DynamicRendezvousHandler


def handler(kind: type[DynamicRendezvousHandler], *nodes: str) -> Any:
    found: Any = object.__new__(kind)
    found.waiting = 0
    found._state_holder = SimpleNamespace(state=SimpleNamespace(participants=dict.fromkeys(nodes)))
    return found


def trains_while_one_waits(kind: type[DynamicRendezvousHandler], folder: Path, *nodes: str) -> Any:
    found = handler(kind, *nodes)
    found.next_rendezvous()
    (folder / "heartbeat-12").touch()
    found.waiting = 1
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


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own rendezvous as agents have it, until the test ends."""
    for name in ("next_rendezvous", "num_nodes_waiting", "shutdown"):
        monkeypatch.setattr(DynamicRendezvousHandler, name, getattr(DynamicRendezvousHandler, name))
    monkeypatch.setattr(_BackendRendezvousStateHolder, "_sanitize", _BackendRendezvousStateHolder._sanitize)
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    follow_membership(tmp_path, SnapshotRequests(tmp_path, 60), Departure())


@pytest.mark.usefixtures("followed")
def test_a_node_killed_between_its_round_and_its_workers_closes_the_run_for_nobody() -> None:
    """torch closes the rendezvous for good where an agent waits in vain for another's ranks."""
    patience = timedelta(seconds=2)
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=patience)

    def agent_of(address: str, min_nodes: int = 2) -> DynamicRendezvousHandler:
        store = TCPStore("127.0.0.1", server.port, is_master=False, timeout=patience)
        backend, timeout = C10dRendezvousBackend(store, "run"), RendezvousTimeout(last_call=patience)
        return DynamicRendezvousHandler.from_backend(
            "run", store, backend, min_nodes, 2, address, timeout, 1, 3
        )

    own, killed = agent_of("127.0.0.1"), agent_of("127.0.0.2")
    with ThreadPoolExecutor() as pool:
        joining = pool.submit(killed.next_rendezvous)
        info = own.next_rendezvous()
        joining.result()
    assert info.world_size == 2
    killed._stop_heartbeats()
    spec: Any = SimpleNamespace(role="default", local_world_size=1)
    meet: Any = SimpleElasticAgent._assign_worker_ranks
    with pytest.raises(DistStoreError) as raised:
        try:
            meet(None, info.store, info.rank, info.world_size, spec)
        finally:  # as torchrun does on its way out
            own.shutdown()
    assert is_lost_rendezvous(raised.value) and not own.is_closed()
    again = agent_of("127.0.0.1", min_nodes=1)
    assert again.next_rendezvous().world_size == 1
    again.shutdown()
    assert again.is_closed(), "training has ended"


@pytest.mark.usefixtures("followed")
@pytest.mark.parametrize(
    ("death", "closes"),
    [
        (OSError("no space left on device"), False),
        (ChildFailedError("worker", {0: ProcessFailure(0, 1, 1, "")}), True),
    ],
    ids=["defect", "no-restart-left"],
)
def test_an_agent_that_dies_of_a_defect_goes_alone(death: Exception, closes: bool) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    backend = C10dRendezvousBackend(store, "run")
    own = DynamicRendezvousHandler.from_backend("run", store, backend, 1, 1, "127.0.0.1")
    assert own.next_rendezvous().world_size == 1
    with pytest.raises(type(death)):
        try:
            raise death
        finally:  # as torchrun does on its way out
            own.shutdown()
    assert own.is_closed() is closes


class Bucket:
    """A rendezvous store in memory."""

    def __init__(self) -> None:
        self.state = _RendezvousState()

    def get_state(self) -> tuple[bytes, int]:
        return pickle.dumps(self.state), 0

    def beat(self, node: _NodeDesc, clock: datetime) -> None:
        self.state.participants[node] = 0
        self.state.last_heartbeats[node] = clock


class Watcher:
    """An agent's view of the list on a machine whose two clocks a test sets; it waits for 15 s."""

    def __init__(self, bucket: Bucket, own: _NodeDesc | None, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = RendezvousSettings("run", 1, 4, RendezvousTimeout(), timedelta(seconds=5), 3)
        self.holder: Any = _BackendRendezvousStateHolder(bucket, settings, cache_duration=0)
        self.holder._eosin_node = own
        self.now_s, self.wrong_by_s = 1000.0, 0.0
        clock = SimpleNamespace(monotonic=lambda: self.now_s)
        monkeypatch.setattr(membership, "time", clock)
        date = SimpleNamespace(now=lambda _: self.date())
        for module in (membership, dynamic_rendezvous):
            monkeypatch.setattr(module, "datetime", date)

    def date(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now_s + self.wrong_by_s)

    def sees(self, after_s: float) -> set[_NodeDesc]:
        self.now_s += after_s
        self.holder.sync()
        return set(self.holder.state.participants)


OWN, OTHER = _NodeDesc("a", 1, 0), _NodeDesc("b", 1, 0)


@pytest.mark.usefixtures("patched")
def test_an_agent_that_got_no_cpu_does_not_strike_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket()
    watcher = Watcher(bucket, OWN, monkeypatch)
    bucket.beat(OWN, watcher.date())
    assert watcher.sees(0) == {OWN}
    assert watcher.sees(600) == {OWN}


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("skew_s", [-3600.0, -20.0, 20.0, 3600.0])
def test_clocks_that_differ_strike_nobody_and_hide_no_death(
    monkeypatch: pytest.MonkeyPatch, skew_s: float
) -> None:
    bucket = Bucket()
    watcher = Watcher(bucket, OWN, monkeypatch)
    for _ in range(8):
        bucket.beat(OTHER, watcher.date() + timedelta(seconds=skew_s))
        assert watcher.sees(5) == {OTHER}
    assert watcher.sees(9) == {OTHER}
    assert watcher.sees(7) == set(), "16 s without a sign"


@pytest.mark.usefixtures("patched")
def test_a_clock_that_is_set_strikes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket()
    watcher = Watcher(bucket, OWN, monkeypatch)
    bucket.beat(OTHER, watcher.date())
    assert watcher.sees(1) == {OTHER}
    watcher.wrong_by_s = 86_400
    assert watcher.sees(1) == {OTHER}


@pytest.mark.usefixtures("patched")
def test_who_was_gone_before_an_agent_came_holds_it_up_for_half_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = Bucket()
    watcher = Watcher(bucket, OWN, monkeypatch)
    bucket.beat(OTHER, watcher.date() - timedelta(seconds=60))
    assert watcher.sees(0) == {OTHER}
    assert watcher.sees(8) == set()
    assert bucket.state.last_heartbeats, "what others wrote is theirs"


def test_nodes_that_wait_are_counted_as_ever(patched: type[DynamicRendezvousHandler]) -> None:
    found = handler(patched, "a")
    found.next_rendezvous()
    found.waiting = 2
    assert found.num_nodes_waiting() == 2


def test_a_node_that_waits_is_let_in_once_the_workers_have_kept_a_snapshot(
    patched: type[DynamicRendezvousHandler], tmp_path: Path
) -> None:
    found = trains_while_one_waits(patched, tmp_path, "a")
    assert found.num_nodes_waiting() == 0
    assert (tmp_path / "snapshot-request").exists()
    (tmp_path / "snapshot-kept").touch()
    assert found.num_nodes_waiting() == 1
    found.next_rendezvous()
    assert [each.is_planned for each in read_reports(tmp_path, Round)] == [False, True]
    assert not list(tmp_path.glob("snapshot-*")), "the next world is not asked"


def test_a_snapshot_kept_for_a_node_that_has_gone_lets_no_later_one_in(
    patched: type[DynamicRendezvousHandler], tmp_path: Path
) -> None:
    """Steps were taken since: they would be lost."""
    found = trains_while_one_waits(patched, tmp_path, "a")
    assert found.num_nodes_waiting() == 0
    found.waiting = 0
    assert found.num_nodes_waiting() == 0
    (tmp_path / "snapshot-kept").touch()
    assert found.num_nodes_waiting() == 0
    found.waiting = 1
    assert found.num_nodes_waiting() == 0 and (tmp_path / "snapshot-request").exists()


def test_nobody_waits_for_the_snapshot_of_workers_that_wait_for_a_lost_node(
    patched: type[DynamicRendezvousHandler], tmp_path: Path
) -> None:
    """Its replacement waits already: workers that sit in a collective with the lost one never answer."""
    found = trains_while_one_waits(patched, tmp_path, "a", "b", "c")
    del found._state_holder.state.participants["c"]
    assert found.num_nodes_waiting() == 1
    assert not (tmp_path / "snapshot-request").exists()


def test_another_torch_changes_nothing(patched: type[DynamicRendezvousHandler]) -> None:
    found = handler(patched, "a", "b")
    found.next_rendezvous()
    del found._state_holder
    assert found.num_nodes_waiting() == 0


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
