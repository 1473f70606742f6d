"""A GPU is never waited for within a step.

On the meta device there are shapes but no numbers: whatever asks for one, or for a shape that depends on
one, raises, and so does an operation on tensors of two devices. That is what a GPU would have to be waited
for, so a step that runs there to its end is launched as a whole.
"""

from typing import Any

import pytest
import torch

from eosin.config import RunConfig
from eosin.models.drop_path import Layout, pack_drops
from eosin.observability import RunLog
from eosin.training.engine import step as engine
from eosin.training.engine.microbatch import batch_indices
from eosin.training.engine.objective import TERMS
from eosin.training.loop import Trainer
from eosin.training.world import World
from tests.support.training_run import ArraySource, tiny_config

KINDS: list[dict[str, Any]] = [
    {"method": "dino"},
    {"method": "dinov2"},
    {"precision": "bf16", "model": {"drop_path": 0.4}},
    {"pack": False, "model": {"drop_path": 0.1}, "activation_checkpointing": True},
    {"dino": {"centering": "softmax"}, "kde": {"weight": 0.05}, "koleo": {"weight": 0.0}},
    {"deterministic": True},
    {"gram": {"weight": 1.0, "px_multiplier": 2}, "paka": {"weight": 1.0}},
    {"jepa": {"weight": 1.0}, "ibot": {"weight": 0.0}},
]


class NeverArrives(engine.Numbers):
    """Keeps the numbers where they are, so that the test alone decides what is read."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values


def trainer(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    autocast, is_enabled = torch.autocast, torch.is_autocast_enabled
    monkeypatch.setattr(engine, "Numbers", NeverArrives)
    # There is no autocast for meta tensors; the casts it makes wait for nothing.
    monkeypatch.setattr(torch, "autocast", lambda device, *args, **kwargs: autocast("cpu", *args, **kwargs))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: is_enabled("cpu"))
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    return Trainer(config, World(config.train.num_microbatches, device=torch.device("meta")), RunLog("meta"))


@pytest.mark.parametrize("train", KINDS, ids=str)
def test_crops_masks_and_a_step_are_launched_whole(
    train: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**train)
    run = trainer(config, monkeypatch)
    indices = batch_indices(run.world.own_microbatches, config.train.microbatch_size)
    batch = next(iter(ArraySource().batches([(0, indices)])))
    launched = run.learner.launch(0, run._microbatches(0, batch))
    numbers = launched.numbers
    assert isinstance(numbers, NeverArrives)
    num_microbatches, has_centre = config.train.num_microbatches, config.train.centering == "softmax"
    assert numbers.values.shape == (len(TERMS) + 2 + 2 * num_microbatches + len(launched.norms) + has_centre,)
    assert launched.norms.keys() == run.learner.student.submodules().keys()


def test_what_would_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself: one place in a thousand that reads a number is enough."""
    config = tiny_config()
    run = trainer(config, monkeypatch)

    def peeking(drops: Any, layout: Layout, num_branches: int) -> Any:
        for drop in drops:
            assert drop.rows is None or int(drop.rows.max()) >= 0
        return pack_drops(drops, layout, num_branches)

    monkeypatch.setattr("eosin.models.backbone.pack_drops", peeking)
    indices = batch_indices(run.world.own_microbatches, config.train.microbatch_size)
    batch = next(iter(ArraySource().batches([(0, indices)])))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        run.learner.launch(0, run._microbatches(0, batch))


class Late(engine.Numbers):
    """Numbers of a device that is still busy whenever it is asked."""

    def arrived(self) -> bool:
        return False


def test_a_batch_made_while_the_device_works_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches are asked for one step ahead, within a stretch of steps; and waited for in vain by nobody."""
    config = tiny_config(num_steps=4)
    losses, asked = {}, {}
    for numbers in (engine.Numbers, Late):
        monkeypatch.setattr(engine, "Numbers", numbers)
        run = Trainer(config, World(config.train.num_microbatches), RunLog("ahead"))
        source, order = ArraySource(), []
        batches = source.batches

        def noted(wanted: Any, order: list[str] = order, batches: Any = batches) -> Any:
            for step, indices in wanted:
                order.append(f"patches of {step}")
                yield from batches([(step, indices)])

        monkeypatch.setattr(source, "batches", noted)
        steps = run._steps(source, range(4), str)
        found = []
        for ready, result in steps:
            order.append(f"step {ready.step}")
            found.append(result.loss)
            assert numbers is engine.Numbers or ready.step == 0 or ready.waited_s == 0
        losses[numbers.__name__], asked[numbers.__name__] = found, order
    assert losses["Late"] == losses["Numbers"]
    assert asked["Numbers"][:4] == ["patches of 0", "step 0", "patches of 1", "step 1"]
    assert asked["Late"][:4] == ["patches of 0", "patches of 1", "step 0", "patches of 2"]
    assert asked["Late"][-2:] == ["step 2", "step 3"]
