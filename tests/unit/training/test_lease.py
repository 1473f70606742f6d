"""Only the world that started last publishes for a run."""

import threading
from pathlib import Path

import pytest

from eosin.errors import EXIT_TRANSIENT, TransientError
from eosin.layout import RunLayout
from eosin.models.network import build_network
from eosin.observability import RunLog
from eosin.records import LeaseRecord, TrainingDone
from eosin.runs import complete_steps
from eosin.storage import Store, open_store
from eosin.training.checkpoints.checkpoint import ALONE
from eosin.training.checkpoints.lease import Lease
from eosin.training.checkpoints.publisher import Publisher
from eosin.training.checkpoints.state import TrainingState, copy_state
from eosin.training.elastic.agent import _exit_code, verdict
from eosin.training.elastic.reports import FAILURES_DIR, Superseded, report_failure
from eosin.training.engine.step import Learner
from eosin.training.world import World
from tests.support.training_run import tiny_config

CONFIG = tiny_config()


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    uri = str(tmp_path) if request.param == "file" else f"{request.getfixturevalue('bucket_uri')}/run"
    return open_store(uri)


@pytest.fixture(scope="module")
def learner() -> Learner:
    return Learner(CONFIG, build_network(CONFIG), World(CONFIG.train.num_microbatches))


def snapshot(learner: Learner, step: int) -> TrainingState:
    return copy_state(learner, step, None)


def test_the_newest_wins_and_the_older_is_told_by_whom(store: Store) -> None:
    older = Lease.take(store)
    older.check()
    newer = Lease.take(store)
    newer.check()
    record = LeaseRecord.from_json(store.get(RunLayout.LEASE), source="lease")
    with pytest.raises(Superseded) as raised:
        older.check()
    assert record.holder in raised.value.message and record.taken_at in raised.value.message


def test_of_many_that_start_at_once_one_holds_it(store: Store) -> None:
    taken: list[Lease] = []
    threads = [threading.Thread(target=lambda: taken.append(Lease.take(store))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(taken) == 6
    assert sum(_holds(lease) for lease in taken) == 1


def _holds(lease: Lease) -> bool:
    try:
        lease.check()
    except Superseded:
        return False
    return True


@pytest.mark.parametrize(
    "left", [b"", b"{}", b'{"token": "of a run long dead", "holder": "a", "taken_at": "b"}']
)
def test_nothing_left_by_others_keeps_a_world_out(tmp_path: Path, left: bytes) -> None:
    store = open_store(str(tmp_path))
    store.put(RunLayout.LEASE, left)
    Lease.take(store).check()


def test_one_deleted_by_hand_stays_with_its_world(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    lease = Lease.take(store)
    store.delete([RunLayout.LEASE])
    lease.check()
    lease.check()
    assert store.exists(RunLayout.LEASE)


def test_an_unreadable_one_is_not_ours(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    lease = Lease.take(store)
    store.put(RunLayout.LEASE, b"half a")
    with pytest.raises(Superseded):
        lease.check()


def test_a_world_that_lost_the_run_publishes_nothing_more(tmp_path: Path, learner: Learner) -> None:
    store = open_store(str(tmp_path))
    publisher = Publisher(store, CONFIG, "", RunLog("test"), Lease.take(store))
    publisher.checkpoint(snapshot(learner, 5))
    while not complete_steps(store):
        publisher.raise_failure()
    Lease.take(store)
    publisher.export(10, learner.teacher.backbone)
    publisher.offer(snapshot(learner, 12))
    with pytest.raises(Superseded):
        publisher.close()
    assert publisher.rescue(1.0) == 5
    done = TrainingDone(num_steps=20, models=(), snapshot_id="", config_digest="")
    with pytest.raises(Superseded):
        publisher.finish(done)
    assert {info.key.split("/")[0] for info in store.list()} == {"lease.json", "checkpoints"}
    assert complete_steps(store) == [5]


def test_a_world_that_loses_the_run_while_it_writes_leaves_no_marker(
    tmp_path: Path, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    publisher = Publisher(store, CONFIG, "", RunLog("test"), Lease.take(store))
    put, other = type(store).put, open_store(str(tmp_path))

    def put_and_lose(self: Store, key: str, data: bytes, **conditions: object) -> object:
        if key == RunLayout.checkpoint_part(5, f"{ALONE}-00000-of-00001-000"):
            monkeypatch.setattr(type(store), "put", put)
            Lease.take(other)
        return put(self, key, data, **conditions)  # type: ignore[arg-type]

    monkeypatch.setattr(type(store), "put", put_and_lose)
    publisher.checkpoint(snapshot(learner, 5))
    with pytest.raises(Superseded):
        publisher.close()
    assert store.exists(RunLayout.checkpoint_part(5, f"{ALONE}-00000-of-00001-000"))
    assert complete_steps(store) == []


def test_its_agent_stops_at_once_instead_of_taking_the_run_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAILURES_DIR, str(tmp_path))
    report_failure(Superseded("another world"), 0)
    found = verdict(tmp_path, 3)
    assert found is not None and isinstance(found.to_error(), TransientError)
    assert _exit_code(tmp_path, found) == EXIT_TRANSIENT
