"""The same step on a GPU: as on the CPU in float32, learning in bf16, and the same in every faster way."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from eosin.config import RunConfig
from eosin.models.arch import import_timm
from eosin.models.backbone import CropGroup, build_backbone
from eosin.models.flops import measure_matrix_rate
from eosin.observability import RunLog
from eosin.training.checkpoints.state import copy_state, flatten, live_parts
from eosin.training.engine.microbatch import batch_indices
from eosin.training.engine.step import Learner, StepResult
from eosin.training.loop import Trainer
from eosin.training.world import World
from tests.support.training_run import ArraySource, tiny_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "training.py"
# Any drop path above 0.1 runs branches on a subset of the crops.
SUBSET = {"drop_path": 0.3}


def steps(config: RunConfig, device: str, num_steps: int) -> tuple[list[StepResult], Learner]:
    world = World(config.train.num_microbatches, device=torch.device(device))
    trainer = Trainer(config, world, RunLog("gpu"))
    indices = batch_indices(world.own_microbatches, config.train.microbatch_size)
    results = []
    for step, batch in enumerate(ArraySource().batches((t, indices) for t in range(num_steps))):
        results.append(trainer.learner.step(step, trainer._microbatches(step, batch)))
    return results, trainer.learner


def vector(state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.double().cpu().flatten() for value in state.values()])


def distance(ours: Learner, theirs: Learner) -> float:
    one, other = vector(ours.student.state_dict()), vector(theirs.student.state_dict())
    return float((one - other).norm() / other.norm())


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("method", ["dino", "dinov2"])
def test_float32_steps_agree_with_the_cpu(method: str) -> None:
    config = tiny_config(method=method, optimizer={"lr": 1e-3})
    ours, learner = steps(config, "cuda", 3)
    theirs, reference = steps(config, "cpu", 3)
    for one, other in zip(ours, theirs, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
    assert distance(learner, reference) < 1e-4


@pytest.mark.parametrize("change", [{"pack": False}, {"compile": True}, {"activation_checkpointing": True}])
@pytest.mark.parametrize("model", [{}, SUBSET], ids=["bernoulli", "subset"])
def test_every_way_to_be_faster_takes_the_same_steps(
    change: dict[str, bool], model: dict[str, float]
) -> None:
    """Fused AdamW is used throughout; it is compared with the CPU's above."""
    torch._dynamo.reset()
    plain, reference = steps(tiny_config(model=dict(model), optimizer={"lr": 1e-3}), "cuda", 3)
    fast, learner = steps(tiny_config(model=dict(model), optimizer={"lr": 1e-3}, **change), "cuda", 3)
    for one, other in zip(fast, plain, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
    assert distance(learner, reference) < 1e-4


@pytest.mark.parametrize("compiled", [False, True])
def test_bf16_learns_and_keeps_float32_state(compiled: bool) -> None:
    torch._dynamo.reset()
    config = tiny_config(precision="bf16", num_steps=40, compile=compiled)
    results, learner = steps(config, "cuda", 40)
    assert all(parameter.dtype == torch.float32 for parameter in learner.student.parameters())
    assert results[-1].loss < results[0].loss


def test_packed_crops_of_a_real_size_in_bf16_are_those_of_a_pass_each() -> None:
    import_timm()
    config = RunConfig.model_validate({"model": {"arch": "vit_small_patch16_224"}})
    backbone = build_backbone(config.model, 224).cuda().eval()
    generator = torch.Generator("cuda").manual_seed(1)
    groups = [
        CropGroup(torch.randn(num, 3, side, side, device="cuda", generator=generator))
        for num, side in ((8, 224), (32, 96))
    ]
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        packed = backbone(groups)
        apart = [backbone(crops.images) for crops in groups]
    for ours, theirs in zip(packed, apart, strict=True):
        assert torch.nn.functional.cosine_similarity(ours.float(), theirs.float(), dim=-1).min() > 0.999


KINDS = [{"method": "dino"}, {"model": SUBSET, "precision": "bf16"}, {"activation_checkpointing": True}]


@pytest.mark.parametrize("train", KINDS, ids=str)
def test_a_step_waits_for_the_device_only_at_its_end(train: dict[str, Any]) -> None:
    """Copies, crops, masks, teacher, student and gradients are launched without a synchronisation."""
    config = tiny_config(**train)
    world = World(config.train.num_microbatches, device=torch.device("cuda"))
    trainer = Trainer(config, world, RunLog("gpu"))
    indices = batch_indices(world.own_microbatches, config.train.microbatch_size)
    first, second = ArraySource().batches((step, indices) for step in range(2))
    trainer.learner.step(0, trainer._microbatches(0, first))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = trainer.learner.launch(1, trainer._microbatches(1, second))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.learner.settle(launched).loss > 0


def test_a_run_of_the_loop_takes_the_steps_of_one_at_a_time() -> None:
    """CropGroup of the next step are made while the device works: nothing it still reads is written over."""
    config = tiny_config(num_steps=6)
    apart, learner = steps(config, "cuda", 6)
    trainer = Trainer(
        config, World(config.train.num_microbatches, device=torch.device("cuda")), RunLog("gpu")
    )
    ahead = [result.loss for _, result in trainer._steps(ArraySource(), range(6), str)]
    assert ahead == pytest.approx([result.loss for result in apart], rel=1e-5)
    assert distance(trainer.learner, learner) < 1e-5


def test_a_snapshot_is_the_state_in_pinned_memory_and_stays_as_it_was() -> None:
    config = tiny_config(num_steps=4)
    _, learner = steps(config, "cuda", 2)
    snapshot = copy_state(learner, 2, None)
    expected = {name: value.cpu().clone() for name, value in flatten(live_parts(learner)).items()}
    trainer = Trainer(config, learner.world, RunLog("gpu"))
    trainer.learner = learner
    indices = batch_indices(learner.world.own_microbatches, config.train.microbatch_size)
    for step, batch in enumerate(ArraySource().batches((t, indices) for t in range(2, 4)), 2):
        learner.step(step, trainer._microbatches(step, batch))
    kept = {f"{part}/{name}": v for part, tensors in snapshot.parts.items() for name, v in tensors.items()}
    assert kept.keys() == expected.keys()
    assert all(value.is_pinned() and torch.equal(value, expected[name]) for name, value in kept.items())


def test_the_device_multiplies_bf16_faster_than_float32() -> None:
    device = torch.device("cuda")
    assert measure_matrix_rate(device, torch.bfloat16) > 2 * measure_matrix_rate(device, torch.float32)


def test_utilisation_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Figures, not an assertion on them: how fast a machine is decides no test."""
    command = [sys.executable, str(BENCHMARK), "--rounds", "5", "--network", "S/16"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with capsys.disabled():
        print(f"\n{done.stdout}")
