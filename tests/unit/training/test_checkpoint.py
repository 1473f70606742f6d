"""Checkpoints: whole or skipped, kept to a number, published in order with the teachers."""

import copy
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eosin.errors import PermanentError, TransientError, UserError
from eosin.layout import RunLayout
from eosin.models.network import build_network
from eosin.observability import RunLog
from eosin.runs import complete_steps
from eosin.storage import Store, open_store
from eosin.training.checkpoints.checkpoint import (
    ALONE,
    delete_old,
    save_checkpoint,
    save_share,
    take_newest,
)
from eosin.training.checkpoints.publisher import Publisher
from eosin.training.checkpoints.state import TrainingState, copy_state, hand_out, live_parts
from eosin.training.engine.step import Learner
from eosin.training.world import World
from tests.support.training_run import tiny_config

CONFIG = tiny_config()
DIGEST, DIGESTS = CONFIG.digest(), CONFIG.digests()


class Log(RunLog):
    def __init__(self) -> None:
        super().__init__("test")
        self.events: list[tuple[str, dict[str, object]]] = []

    def event(self, name: str, /, **fields: object) -> None:
        self.events.append((name, fields))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def learner(seed_shift: float = 0.0) -> Learner:
    made = Learner(CONFIG, build_network(CONFIG), World(CONFIG.train.num_microbatches))
    with torch.no_grad():
        for parameter in made.student.parameters():
            parameter += seed_shift
    return made


def snapshot(step: int) -> TrainingState:
    return copy_state(learner(step / 1000), step, 1.5)


def test_what_is_saved_comes_back_bit_for_bit(store: Store) -> None:
    saved = snapshot(7)
    save_checkpoint(store, saved, DIGEST)
    target = learner()
    assert take_newest(target, store, DIGESTS, Log()) == (7, 1.5)
    for name, value in target.student.state_dict().items():
        assert torch.equal(value, saved.parts["student"][name])
    steps = {float(state["step"]) for state in target.optimizer.state.values()}
    assert steps == {7.0}


def test_a_snapshot_does_not_change_with_training() -> None:
    made = learner()
    taken = copy_state(made, 1, None)
    before = copy.deepcopy(taken.parts["student"])
    with torch.no_grad():
        for parameter in made.student.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], value) for name, value in taken.parts["student"].items())


def test_nothing_saved_yet(store: Store) -> None:
    assert take_newest(learner(), store, DIGESTS, Log()) == (0, None)


@pytest.mark.parametrize(
    "damage",
    [
        "truncate",
        "flip a bit",
        "lose a file",
        "half a marker",
        "lose the marker",
        "lose a receipt",
        "change a receipt",
    ],
)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(store: Store, damage: str) -> None:
    for step in (5, 10):
        save_checkpoint(store, snapshot(step), DIGEST)
    key, marker = (
        RunLayout.checkpoint_part(10, f"{ALONE}-00000-of-00001-000"),
        RunLayout.checkpoint_marker(10),
    )
    receipt = RunLayout.checkpoint_receipt(10, f"{ALONE}-00000-of-00001")
    data = store.get(key)
    if damage == "truncate":
        store.put(key, data[:-100])
    elif damage == "flip a bit":
        store.put(key, data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])
    elif damage == "lose a file":
        store.delete([key])
    elif damage == "lose a receipt":
        store.delete([receipt])
    elif damage == "change a receipt":
        store.put(receipt, store.get(receipt).replace(b'"start": 8', b'"start": 9', 1) + b" ")
    elif damage == "half a marker":
        store.put(marker, store.get(marker)[:40])
    else:
        store.delete([marker])
    log = Log()
    assert take_newest(learner(), store, DIGESTS, log) == (5, 1.5)
    warned = [str(fields["message"]) for name, fields in log.events if name == "warning"]
    assert len(warned) == (damage != "lose the marker")
    assert all("checkpoint 10 is skipped" in message for message in warned)


def test_another_configurations_checkpoint_is_refused(store: Store) -> None:
    save_checkpoint(store, snapshot(5), "0" * 64)
    with pytest.raises(UserError, match="another configuration"):
        take_newest(learner(), store, DIGESTS, Log())


def test_a_state_of_another_network_does_not_fit() -> None:
    other = tiny_config(model={"arch_args": {"patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 2}})
    foreign = Learner(other, build_network(other), World(other.train.num_microbatches))
    with pytest.raises(PermanentError, match="student does not fit"):
        hand_out(learner(), 3, {0: copy_state(foreign, 3, None).parts}, [0])


def test_old_ones_and_leftovers_go_and_the_newest_stay(store: Store) -> None:
    for step in (3, 6, 9, 12):
        save_checkpoint(store, snapshot(step), DIGEST)
    store.delete([RunLayout.checkpoint_marker(6)])
    assert delete_old(store, 2) == [3, 6]
    assert complete_steps(store) == [9, 12]
    assert {info.key.split("/")[1] for info in store.list(RunLayout.CHECKPOINTS)} == {
        "step-00000009",
        "step-00000012",
    }


def test_a_step_written_again_keeps_its_old_files_until_the_new_ones_are_whole(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(store, snapshot(5), DIGEST, world="a" * 8)
    put = type(store).put

    def fail_on_receipt(self: Store, key: str, data: bytes, **conditions: object) -> object:
        if key.endswith(".json"):
            raise TransientError("gone")
        return put(self, key, data, **conditions)  # type: ignore[arg-type]

    monkeypatch.setattr(type(store), "put", fail_on_receipt)
    with pytest.raises(TransientError):
        save_checkpoint(store, snapshot(5), DIGEST, world="b" * 8)
    assert take_newest(learner(), store, DIGESTS, Log()) == (5, 1.5)


def test_a_share_that_never_comes_leaves_no_marker(store: Store) -> None:
    torn = replace(snapshot(5), index=0, num_pieces=2)
    with pytest.raises(TransientError, match=r"00001-of-00002\.json was not written in time"):
        save_checkpoint(store, torn, DIGEST, timeout_s=0.2)
    assert complete_steps(store) == []


def test_a_share_of_another_world_is_not_taken_for_ones_own(store: Store) -> None:
    save_share(store, replace(snapshot(5), index=1, num_pieces=2), world="a" * 8)
    with pytest.raises(TransientError):
        save_checkpoint(store, replace(snapshot(5), num_pieces=2), DIGEST, world="b" * 8, timeout_s=0.2)


def test_shares_that_do_not_make_up_every_tensor_are_not_marked_whole(store: Store) -> None:
    twice = replace(snapshot(5), index=1, num_pieces=2)
    save_share(store, twice)
    with pytest.raises(PermanentError, match="do not make up"):
        save_checkpoint(store, replace(snapshot(5), num_pieces=2), DIGEST)


def test_files_are_cut_at_a_size_and_come_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eosin.training.checkpoints.files._FILE_BYTES", 20_000)
    monkeypatch.setattr("eosin.training.checkpoints.files._BATCH_BYTES", 5_000)
    saved = snapshot(5)
    save_checkpoint(store, saved, DIGEST)
    sizes = [info.size_bytes for info in store.list(RunLayout.checkpoint(5)) if "safetensors" in info.key]
    assert len(sizes) > 10
    target = learner()
    assert take_newest(target, store, DIGESTS, Log()) == (5, 1.5)
    found = live_parts(target)
    for part, tensors in saved.parts.items():
        assert all(torch.equal(found[part][name], value) for name, value in tensors.items())


def test_a_teacher_is_durable_before_the_checkpoint_that_follows_it(store: Store) -> None:
    log = Log()
    publisher = Publisher(store, CONFIG, "snap", log)
    began_s = time.monotonic()
    publisher.export(10, copy.deepcopy(learner().teacher.backbone))
    publisher.checkpoint(snapshot(10))
    publisher.close()
    assert 0 <= publisher.checkpoint_age_s() <= time.monotonic() - began_s
    assert [name for name, _ in log.events] == ["export", "checkpoint"]
    card = json.loads(store.get(RunLayout.teacher_card("step-00000010")))
    assert card["snapshot_id"] == "snap" and card["step"] == 10


def test_a_failed_export_keeps_later_checkpoints_back_and_is_raised(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TransientError("the store is down")

    monkeypatch.setattr("eosin.training.checkpoints.publisher.export_teacher", fail)
    publisher = Publisher(store, CONFIG, "", Log())
    publisher.export(10, learner().teacher.backbone)
    with pytest.raises(TransientError, match="down"):
        publisher.checkpoint(snapshot(10))
        publisher.close()
    assert complete_steps(store) == []


def test_a_worker_told_to_go_publishes_its_newest_copy(store: Store) -> None:
    publisher = Publisher(store, CONFIG, "", Log())
    publisher.checkpoint(snapshot(5))
    publisher.offer(snapshot(8))
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(publisher.rescue(5.0)))
    thread.start()
    thread.join(10)
    assert found == [8]
    assert complete_steps(store) == [5, 8]
