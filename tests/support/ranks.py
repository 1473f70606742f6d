"""Train in several gloo processes without an agent, and hand back what each ended with."""

from __future__ import annotations

import multiprocessing
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from eosin.config import RunConfig
from eosin.models.arch import import_timm
from eosin.observability import RunLog
from eosin.storage import open_store
from eosin.training.checkpoint import save_checkpoint
from eosin.training.loop import Trainer
from eosin.training.state import take_snapshot
from eosin.training.world import World
from tests.support.training_run import ArraySource

# Ranks are forked from a server that has imported torch and timm once.
import_timm()
multiprocessing.set_forkserver_preload(["tests.support.ranks"])


@dataclass(frozen=True)
class Leg:
    """So many ranks take the run from where it stands to step `until`."""

    num_ranks: int
    until: int


def train_legs(config: RunConfig, folder: Path, legs: list[Leg]) -> dict[str, Tensor]:
    """The student's and teacher's parameters after all legs; each leg resumes from the last one's checkpoint.

    What each rank consumed lies in `folder` as consumed-*.jsonl.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leg in legs:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        arguments = (leg, port, config, folder)
        mp.start_processes(_rank, arguments, nprocs=leg.num_ranks, start_method="forkserver")
    return dict(torch.load(folder / "final.pt", weights_only=True))


def norm_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """‖Δ‖ / ‖θ‖ over the whole parameter vector."""
    one = torch.cat([ours[name].flatten().double() for name in sorted(ours)])
    other = torch.cat([theirs[name].flatten().double() for name in sorted(theirs)])
    return float((one - other).norm() / other.norm())


def _rank(rank: int, leg: Leg, port: int, config: RunConfig, folder: Path) -> None:
    torch.set_num_threads(1)
    if leg.num_ranks > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=leg.num_ranks,
            timeout=timedelta(seconds=60),
        )  # fmt: skip
    world = World(config.train.num_slots, rank, leg.num_ranks, config.train.deterministic)
    store = open_store(str(folder))
    trainer = Trainer(config, world, RunLog("test"))
    start = trainer.resume(store)
    outcome = trainer.run(ArraySource(str(folder)), start, None, str, until=leg.until)
    if rank == 0:
        save_checkpoint(store, take_snapshot(trainer.learner, outcome.step, outcome.loss), config.digest())
        network = {"student": trainer.learner.student, "teacher": trainer.learner.teacher}
        state = {
            f"{which}.{name}": p.detach()
            for which, net in network.items()
            for name, p in net.named_parameters()
        }
        torch.save(state, folder / "final.pt")
    if leg.num_ranks > 1:
        dist.barrier()
        dist.destroy_process_group()
