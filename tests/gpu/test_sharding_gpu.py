"""FSDP2 with NCCL: shards take the steps of replicas, in float32 and bf16, and come back from a checkpoint.

Where there is no GPU the file skips. Its tests of one process also pass on a CPU with gloo, where they were
written; nothing here has run on a GPU yet.
"""

import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from eosin.config import RunConfig
from eosin.models.network import build_network
from eosin.observability import RunLog
from eosin.storage import open_store
from eosin.training.checkpoints.checkpoint import save_checkpoint, take_newest
from eosin.training.checkpoints.state import take_share
from eosin.training.engine.microbatch import batch_indices
from eosin.training.engine.parallel import whole
from eosin.training.engine.step import Learner, StepResult
from eosin.training.loop import Trainer
from eosin.training.world import World
from tests.support.training_run import ArraySource, tiny_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def whole_float32() -> Iterator[None]:
    """No TF32: its rounding would hide differences."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def steps(
    config: RunConfig, device: str, num_steps: int, rank: int = 0, size: int = 1
) -> tuple[list[StepResult], Learner]:
    world = World(config.train.num_microbatches, rank, size, device=torch.device(device))
    trainer = Trainer(config, world, RunLog("gpu"))
    indices = batch_indices(world.own_microbatches, config.train.microbatch_size)
    results = []
    for step, batch in enumerate(ArraySource().batches((t, indices) for t in range(num_steps))):
        results.append(trainer.learner.step(step, trainer._microbatches(step, batch)))
    return results, trainer.learner


def vector(state: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([value.double().cpu().flatten() for value in state.values()])


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of one, with NCCL for what lies on the GPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("method", ["dino", "dinov2"])
def test_float32_shards_take_the_steps_of_replicas(method: str, compiled: bool, group: None) -> None:
    torch._dynamo.reset()
    config = tiny_config(method=method, optimizer={"lr": 1e-3})
    theirs, replicas = steps(config, DEVICE, 3)
    faster = config.train.model_copy(update={"compile": compiled, "parallel": "fsdp"})
    ours, shards = steps(config.model_copy(update={"train": faster}), DEVICE, 3)
    assert shards.strategy.is_sharded and not replicas.strategy.is_sharded
    for one, other in zip(ours, theirs, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
    one, other = vector(whole_student(shards)), vector(replicas.student.state_dict())
    assert float((one - other).norm() / other.norm()) < 1e-4


def test_bf16_shards_learn_keep_float32_state_and_come_back_from_a_checkpoint(
    tmp_path: Path, group: None
) -> None:
    config = sharded(tiny_config(precision="bf16", num_steps=40))
    results, learner = steps(config, DEVICE, 20)
    assert all(parameter.dtype == torch.float32 for parameter in learner.student.parameters())
    assert results[-1].loss < results[0].loss
    before = whole_student(learner)
    store = open_store(str(tmp_path))
    save_checkpoint(store, take_share(learner, 20, results[-1].loss), config.digest())
    steps_on = Learner(config, build_network(config), learner.world)
    assert take_newest(steps_on, store, config.digests(), RunLog("gpu")) == (20, results[-1].loss)
    assert all(torch.equal(before[name], value) for name, value in whole_student(steps_on).items())


def test_every_gpu_of_the_machine_holds_a_shard(tmp_path: Path) -> None:
    """NCCL between GPUs, uneven shares on three or more; skipped where there is one."""
    num_gpus = min(torch.cuda.device_count(), 4)
    if num_gpus < 2:
        pytest.skip("one GPU has nobody to share with")
    for precision, limit in (("float32", 1e-4), ("bf16", 5e-2)):
        config = sharded(tiny_config(precision=precision, num_microbatches=8))
        alone, _ = steps(tiny_config(precision=precision, num_microbatches=8), "cuda", 3)
        mp.start_processes(_shard_on_gpu, (num_gpus, config, tmp_path), nprocs=num_gpus, start_method="spawn")
        losses = json.loads((tmp_path / "losses.json").read_text())
        assert losses == pytest.approx([result.loss for result in alone], rel=limit)


def _shard_on_gpu(rank: int, num_ranks: int, config: RunConfig, folder: Path) -> None:
    torch.cuda.set_device(rank)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl", init_method=f"file://{folder}/{config.train.precision}", rank=rank,
        world_size=num_ranks,
    )  # fmt: skip
    results, _ = steps(config, f"cuda:{rank}", 3, rank, num_ranks)
    if rank == 0:
        (folder / "losses.json").write_text(json.dumps([result.loss for result in results]))
    dist.barrier()
    dist.destroy_process_group()


def sharded(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"parallel": "fsdp"})})


def whole_student(learner: Learner) -> dict[str, Tensor]:
    return {name: whole(value).clone() for name, value in learner.student.state_dict().items()}
