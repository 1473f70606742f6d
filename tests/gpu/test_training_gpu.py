"""The same step on a GPU: close to the CPU in float32, finite and learning in bf16."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from eosin.config import RunConfig
from eosin.observability import RunLog
from eosin.training.loop import Trainer
from eosin.training.slots import batch_indices
from eosin.training.step import Learner, StepResult
from eosin.training.world import World
from tests.support.training_run import ArraySource, tiny_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]


def steps(config: RunConfig, device: str, num_steps: int) -> tuple[list[StepResult], Learner]:
    world = World(config.train.num_slots, device=torch.device(device))
    trainer = Trainer(config, world, RunLog("gpu"))
    indices = batch_indices(world.own_slots, config.train.slot_size)
    results = []
    for step, batch in enumerate(ArraySource().batches((t, indices) for t in range(num_steps))):
        results.append(trainer.learner.step(step, trainer._slots(step, batch)))
    return results, trainer.learner


def vector(state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.double().cpu().flatten() for value in state.values()])


@pytest.mark.parametrize("method", ["dino", "dinov2"])
def test_float32_steps_agree_with_the_cpu(method: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    config = tiny_config(method=method, optimizer={"lr": 1e-3})
    ours, learner = steps(config, "cuda", 3)
    theirs, reference = steps(config, "cpu", 3)
    for one, other in zip(ours, theirs, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
    one, other = vector(learner.student.state_dict()), vector(reference.student.state_dict())
    assert float((one - other).norm() / other.norm()) < 1e-4


def test_bf16_learns_and_keeps_float32_state() -> None:
    config = tiny_config(precision="bf16", num_steps=40)
    results, learner = steps(config, "cuda", 40)
    assert all(parameter.dtype == torch.float32 for parameter in learner.student.parameters())
    assert results[-1].loss < results[0].loss
