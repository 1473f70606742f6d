"""Train in several gloo processes without an agent, and hand back what each ended with."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from eosin.config import RunConfig
from eosin.models.arch import import_timm
from eosin.observability import RunLog
from eosin.records import IndexPin
from eosin.storage import open_store
from eosin.training.checkpoints.checkpoint import load_part, save_checkpoint, save_share
from eosin.training.checkpoints.state import take_share
from eosin.training.loop import Trainer
from eosin.training.worker import Feed, open_stream
from eosin.training.world import World
from tests.support.training_run import STEP_DELAY_S, ArraySource, poison

# Ranks are forked from a server that has imported torch and timm once.
import_timm()
multiprocessing.set_forkserver_preload(["tests.support.ranks"])


@dataclass(frozen=True)
class Leg:
    """So many ranks take the run from where it stands to step `until`."""

    num_ranks: int
    until: int
    parallel: str = ""
    """ddp or fsdp; empty: as the configuration says."""
    slow_rank: int | None = None
    """A rank whose every microbatch takes 150 ms more."""


def in_ranks(function: Callable[..., None], num_ranks: int, *arguments: object) -> None:
    """Call `function(rank, num_ranks, *arguments)` in so many processes that share a gloo group.

    One rank alone has no group, as a worker of a world of one.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_processes(
        _in_group, (num_ranks, port, function, arguments), nprocs=num_ranks, start_method="forkserver"
    )


def train_legs(
    config: RunConfig, folder: Path, legs: list[Leg], pin: IndexPin | None = None
) -> dict[str, Tensor]:
    """The student's and teacher's parameters after all legs; each leg resumes from the last one's checkpoint.

    Patches are of the slides of `pin`, or arrays (None); then what each rank consumed lies in `folder` as
    consumed-*.jsonl.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leg in legs:
        parallel = leg.parallel or config.train.parallel
        train = config.train.model_copy(update={"parallel": parallel})
        in_ranks(_train_leg, leg.num_ranks, leg, config.model_copy(update={"train": train}), folder, pin)
    return final_parameters(folder, config, legs[-1].until)


def final_parameters(folder: Path, config: RunConfig, step: int) -> dict[str, Tensor]:
    """Student and teacher of the checkpoint of `step`, whole, as `PART.NAME`."""
    store = open_store(str(folder))
    return {
        f"{part}.{name}": value
        for part in ("student", "teacher")
        for name, value in load_part(store, step, part, config.digests()).items()
    }


def norm_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """‖Δ‖ / ‖θ‖ over the whole parameter vector."""
    one = torch.cat([ours[name].flatten().double() for name in sorted(ours)])
    other = torch.cat([theirs[name].flatten().double() for name in sorted(theirs)])
    return float((one - other).norm() / other.norm())


def _in_group(
    rank: int, num_ranks: int, port: int, function: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    torch.set_num_threads(1)
    if num_ranks > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=num_ranks,
            timeout=timedelta(seconds=60),
        )  # fmt: skip
    function(rank, num_ranks, *arguments)
    if num_ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


def _train_leg(
    rank: int, num_ranks: int, leg: Leg, config: RunConfig, folder: Path, pin: IndexPin | None
) -> None:
    if rank == leg.slow_rank:
        os.environ[STEP_DELAY_S] = "0.15"
        poison()
    world = World(config.train.num_microbatches, rank, num_ranks, config.train.deterministic)
    store = open_store(str(folder))
    log = RunLog("test", store)
    trainer = Trainer(config, world, log)
    start = trainer.resume(store)
    feed = Feed(ArraySource(str(folder)), str) if pin is None else open_stream(config, pin, log)
    outcome = trainer.run(feed.source, start, None, feed.slide_name, until=leg.until)
    feed.source.close()
    share = take_share(trainer.learner, outcome.step, outcome.loss)
    if rank:
        save_share(store, share)
    else:
        save_checkpoint(store, share, config.digest())
