"""Teachers deleted after the end: made again from their checkpoint, or named."""

from pathlib import Path

import pytest

from eosin.errors import PermanentError
from eosin.layout import RunLayout
from eosin.models.network import build_network
from eosin.observability import RunLog
from eosin.records import TeacherCard, TrainingDone
from eosin.storage import Store, open_store
from eosin.training.checkpoints.checkpoint import ALONE
from eosin.training.checkpoints.publisher import Publisher
from eosin.training.checkpoints.state import copy_state
from eosin.training.engine.step import Learner
from eosin.training.train import train
from eosin.training.worker import run_worker
from eosin.training.world import World
from tests.support.training_run import begin, tiny_config

FIRST, LAST = "step-00000010", "step-00000020"


class Warnings(RunLog):
    def __init__(self) -> None:
        super().__init__("test")
        self.messages: list[str] = []

    def event(self, name: str, /, **fields: object) -> None:
        if name == "warning":
            self.messages.append(str(fields["message"]))


@pytest.fixture
def ended(tmp_path: Path) -> Store:
    """A run that ended with two teachers, of which only the last has its checkpoint still."""
    uri = str(tmp_path / "run")
    config = begin(uri, tiny_config(model={"init": "random"}))
    store = open_store(uri)
    learner = Learner(config, build_network(config), World(config.train.num_microbatches))
    publisher = Publisher(store, config, "snap", RunLog("test"))
    for step in (10, 20):
        for parameter in learner.teacher.parameters():
            parameter += 0.25
        publisher.export(step, learner.teacher.backbone)
    publisher.checkpoint(copy_state(learner, 20, 1.0))
    publisher.close()
    done = TrainingDone(num_steps=20, models=(FIRST, LAST), snapshot_id="snap", config_digest=config.digest())
    store.put(RunLayout.TRAINING_DONE, done.to_json())
    return store


def card(store: Store, name: str) -> TeacherCard:
    return TeacherCard.from_json(store.get(RunLayout.teacher_card(name)), source=name)


@pytest.mark.parametrize("gone", [RunLayout.teacher_card, RunLayout.teacher_weights])
def test_the_last_teacher_is_made_again_with_the_same_bits(ended: Store, gone: object) -> None:
    before = card(ended, LAST), ended.get(RunLayout.teacher_weights(LAST))
    ended.delete([gone(LAST)])  # type: ignore[operator]
    log = Warnings()
    assert train(ended.uri, log=log).num_steps == 20
    assert (card(ended, LAST), ended.get(RunLayout.teacher_weights(LAST))) == before
    assert log.messages == []


def test_a_teacher_whose_checkpoint_is_gone_is_named_and_the_others_stay(ended: Store) -> None:
    ended.delete([RunLayout.teacher_card(FIRST), RunLayout.teacher_card(LAST)])
    log = Warnings()
    assert train(ended.uri, log=log).num_steps == 20
    assert card(ended, LAST).step == 20
    [message] = log.messages
    assert FIRST in message and "cannot be made again" in message
    assert RunLayout.checkpoint_marker(10) in message


def test_the_last_teacher_without_its_checkpoint_is_an_error_that_says_what_to_do(ended: Store) -> None:
    ended.delete([RunLayout.teacher_card(LAST), RunLayout.checkpoint_part(20, f"{ALONE}-00000-of-00001-000")])
    with pytest.raises(PermanentError, match=f"{LAST}, the last of .* so is its checkpoint") as raised:
        train(ended.uri, log=RunLog("test"))
    assert RunLayout.TRAINING_DONE in raised.value.hint


def test_a_whole_run_is_left_alone(ended: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "eosin.training.checkpoints.publisher.export_teacher", lambda *_, **__: pytest.fail("exported")
    )
    assert train(ended.uri, log=RunLog("test")).models == (FIRST, LAST)


def test_a_worker_that_comes_after_the_end_makes_what_is_missing_and_trains_nothing(
    ended: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ended.get(RunLayout.teacher_weights(LAST))
    ended.delete([RunLayout.teacher_weights(LAST)])
    run_worker(ended.uri, lambda *_: pytest.fail("asked for patches"))
    assert ended.get(RunLayout.teacher_weights(LAST)) == before
    assert not ended.exists(RunLayout.LEASE)
