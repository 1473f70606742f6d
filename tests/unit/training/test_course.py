"""A run is trained on for longer, or at another rate, on purpose: from its newest checkpoint on."""

from pathlib import Path

import pytest
import torch

from eosin.config import RunConfig, load_config
from eosin.errors import UserError
from eosin.layout import RunLayout
from eosin.records import LeaseRecord, TrainingDone, load_record
from eosin.runs import change_course, load_run, load_training_done, plan_config
from eosin.storage import open_store
from eosin.training.checkpoints.checkpoint import read_marker
from eosin.training.checkpoints.lease import Lease
from eosin.training.engine.optimizer import Schedules
from eosin.training.loop import planned_models
from tests.support.ranks import Leg, train_legs
from tests.support.training_run import begin, tiny_config

FASTER = ["train.num_steps=32", "train.optimizer.lr=2e-3", "train.optimizer.warmup_steps=4"]


@pytest.fixture
def ended(tmp_path: Path) -> str:
    """A run whose newest checkpoint is said to be of step 20; nobody reads it."""
    begin(str(tmp_path), tiny_config())
    open_store(str(tmp_path)).put(RunLayout.checkpoint_marker(20), b"{}")
    return str(tmp_path)


def test_a_run_trained_on_has_the_bits_of_one_that_was_planned_so_at_once(tmp_path: Path) -> None:
    first = begin(str(tmp_path / "run"), tiny_config(num_steps=8, deterministic=True))
    train_legs(first, tmp_path / "run", [Leg(1, 8)])
    store = open_store(str(tmp_path / "run"))
    done = TrainingDone(num_steps=8, models=(), snapshot_id="", config_digest=first.digest())
    store.put(RunLayout.TRAINING_DONE, done.to_json())
    config = change_course(store.uri, ["train.num_steps=14", "train.optimizer.lr=2e-3"])
    assert load_run(store.uri) == config and config.digest() != first.digest()
    assert load_training_done(store, config) is None, "it has steps to take again"
    # A world that was cut off while the course was changed may still finish a checkpoint: it is passed over.
    marker = read_marker(store, 8, config.digests()).model_copy(update={"step": 12})
    assert marker.config_digest == first.digest()
    store.put(RunLayout.checkpoint_marker(12), marker.to_json())
    in_parts = train_legs(config, tmp_path / "run", [Leg(1, 10), Leg(2, 14, "fsdp")])
    at_once = train_legs(config, tmp_path / "at-once", [Leg(1, 14)])
    assert all(torch.equal(in_parts[name], at_once[name]) for name in at_once)


def test_the_teacher_of_the_first_end_stays_one_of_the_runs(ended: str) -> None:
    config = change_course(ended, ["train.num_steps=35", "train.optimizer.warmup_steps=4"])
    assert planned_models(config) == tuple(f"step-{step:08d}" for step in (10, 20, 30, 35))


def test_who_changed_what_is_kept_and_asking_again_changes_nothing(ended: str) -> None:
    lease = Lease.take(open_store(ended))
    config = change_course(ended, FASTER)
    (phase,) = config.train.phases
    assert (phase.until_step, phase.num_steps, phase.lr, phase.warmup_steps) == (20, 20, 4e-3, 3)
    assert "@" in phase.changed_by and "T" in phase.changed_by
    assert change_course(ended, FASTER) == config
    # Changed again before any step of it was taken: there is no phase without steps.
    slower = change_course(ended, ["train.optimizer.lr=1e-3"])
    assert slower.train.phases == config.train.phases and slower.train.optimizer.lr == 1e-3
    found = load_record(LeaseRecord, open_store(ended), RunLayout.LEASE)
    assert found is not None and found.token != lease.token, "the world before may publish no more"


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["train.num_steps=20", "train.optimizer.lr=1e-3"], "num_steps must be above 20"),
        (["train.num_steps=12"], "num_steps must be above 20"),
        (["train.num_steps=22"], "warmup_steps 3 is not below the 2 steps after step 20"),
        (["train.num_steps=40", "train.batch_size=32"], "train.batch_size: 16 → 32 would change what"),
        (["train.num_steps=40", "seed=9"], "seed: 5 → 9 would change what"),
        (["train.num_steps=.inf"], "must be a finite number"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_changes(
    ended: str, overrides: list[str], why: str
) -> None:
    before = load_run(ended)
    with pytest.raises(UserError, match=why):
        change_course(ended, overrides)
    assert load_run(ended) == before


def test_a_longer_plan_of_a_trained_run_is_refused_with_the_way_to_mean_it(ended: str) -> None:
    longer = tiny_config(num_steps=40)
    with pytest.raises(UserError, match="begun with another configuration") as raised:
        plan_config(ended, longer)
    assert f"eosin train {ended} --prolong" in raised.value.hint


def test_a_run_without_a_checkpoint_is_not_trained_on(tmp_path: Path) -> None:
    begin(str(tmp_path), tiny_config())
    with pytest.raises(UserError, match="no checkpoint"):
        change_course(str(tmp_path), ["train.num_steps=40"])


def schedules(config: RunConfig) -> Schedules:
    return Schedules(config.train)


def test_schedules_begin_anew_from_where_they_stood() -> None:
    base = tiny_config().model_dump(mode="json")
    phase = {"until_step": 20, "num_steps": 20, "momentum": 0.992, "lr": 4e-3, "min_lr": 1e-6,
             "warmup_steps": 3, "weight_decay_end": 0.2}  # fmt: skip
    train = {**base["train"], "num_steps": 40, "phases": [phase], "momentum": 0.99}
    train["optimizer"] |= {"lr": 1e-3, "warmup_steps": 5, "weight_decay_end": 0.4}
    config = load_config({**base, "train": train})
    first, both = schedules(tiny_config()), schedules(config)
    assert [both.at(step) for step in range(20)] == [first.at(step) for step in range(20)]
    peak = 1e-3 * (16 / 1024) ** 0.5
    assert both.at(20).lr == pytest.approx(1e-6) and both.at(24).lr == pytest.approx(peak)
    assert both.at(40).lr == pytest.approx(1e-6) and both.at(30).lr < peak
    assert both.at(20).momentum == 0.99 and both.at(40).momentum == 1.0
    assert both.at(20).weight_decay == pytest.approx(0.2) and both.at(40).weight_decay == pytest.approx(0.4)
    assert both.at(20).teacher_temperature == first.at(19).teacher_temperature == 0.07
    assert both.at(20).last_layer_lr == both.at(20).lr, "prototypes are not frozen again"
