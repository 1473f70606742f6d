"""One training process: `python -m eosin.training.worker RUN_URI`, started by torchrun's agent."""

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from eosin.training.elastic.processes import die_with_agent

if __name__ == "__main__":  # before torch is imported, which takes seconds
    die_with_agent()

import torch
import torch.distributed as dist

from eosin.config import RunConfig
from eosin.errors import (
    EXIT_CONFIGURATION_IN_POD,
    EXIT_PERMANENT,
    EosinError,
    PermanentError,
    TransientError,
    UserError,
    describe,
)
from eosin.observability import RunLog
from eosin.patches.request import PatchSource
from eosin.records import IndexPin, TrainingDone
from eosin.runs import load_pin, load_run, load_training_done
from eosin.storage import Store, open_store
from eosin.training.check import warm_start_advice
from eosin.training.checkpoints.lease import Lease
from eosin.training.checkpoints.publisher import Publisher, export_missing
from eosin.training.elastic.reports import FAILURES_DIR, report_failure, report_start
from eosin.training.engine.load_balance import granularity_advice
from eosin.training.loop import ReachedStep, SlideName, Trainer, planned_models
from eosin.training.resume import resume_training, shared_memory, start_memory
from eosin.training.world import World

_TERMINATED = 128 + signal.SIGTERM
# Of the time an agent has to go, before which it may have waited for a snapshot.
_RESCUE_SHARE = 0.7


@dataclass(frozen=True)
class Feed:
    """Where patches come from and what their slides are called."""

    source: PatchSource
    slide_name: SlideName


OpenFeed = Callable[[RunConfig, IndexPin, RunLog], Feed]


def open_stream(config: RunConfig, pin: IndexPin, log: RunLog) -> Feed:
    """Patches of the slides of the pinned snapshot, or of a patch set; held-out patients left out."""
    from eosin.index.snapshot import open_snapshot
    from eosin.patches.decoding.quarantine import Quarantine
    from eosin.patches.sampling.sampler import Sampler
    from eosin.patches.stream import PatchStream

    snapshot = open_snapshot(pin.index_uri, pin.snapshot_id)
    if config.patches.source != "slides":
        from eosin.patches.sets.training_set import open_training_set

        patches = open_training_set(config.patches, snapshot, config.seed)
        return Feed(patches, patches.slide_name)
    sampler = Sampler(snapshot, config.patches, seed=config.seed, split="train")
    quarantine = Quarantine(log.store, snapshot)
    # What a GPU decodes stays there for the crops.
    on_gpu = config.patches.decoder != "cpu" and torch.cuda.is_available()
    device = f"cuda:{torch.cuda.current_device()}" if on_gpu else None
    stream = PatchStream(sampler, log, quarantine=quarantine, device=device)
    return Feed(stream, lambda row: str(snapshot.rows[row].slide))


def run_worker(run_uri: str, open_feed: OpenFeed = open_stream) -> None:
    """Train as one rank of the world the environment describes (a world of one without torchrun)."""
    started_s = time.monotonic()
    store = open_store(run_uri)
    config, pin = load_run(run_uri, store=store), load_pin(run_uri, store=store)
    world = _join_world(config)
    part = "train" if world.rank == 0 else f"train-rank-{world.rank:05d}"
    try:
        with RunLog(part, store) as log:
            _train(config, pin, world, store, log, open_feed, started_s)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def main() -> int:
    """Exit code 0, or that of the error, which is also left for the agent."""
    if len(sys.argv) != 2:
        print("usage: python -m eosin.training.worker RUN_URI", file=sys.stderr)
        return EXIT_PERMANENT
    return guarded(lambda: run_worker(sys.argv[1]))


def guarded(run: Callable[[], None]) -> int:
    """Run a worker; an error becomes an exit code and a file for the agent, or a line where no agent is.

    A transient error is always a line: the agent starts the worker again and would say nothing of it. So is
    the loss of a peer, which is a day like any other where nodes come and go.
    """
    _set_up_process()
    try:
        run()
        return 0
    except BaseException as error:
        report_failure(error, int(os.environ.get("RANK", "0")))
        if isinstance(error, EosinError):
            if isinstance(error, TransientError) or not os.environ.get(FAILURES_DIR):
                print(describe(error), file=sys.stderr)
            return EXIT_CONFIGURATION_IN_POD if isinstance(error, UserError) else error.exit_code
        if _is_lost_peer(error):
            rank = os.environ.get("RANK", "0")
            print(f"worker: rank {rank} has lost another: {str(error).splitlines()[0]}", file=sys.stderr)
            return EXIT_PERMANENT
        raise


def _is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed for want of another process. gloo has no kind of error of its own."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    )


def _train(
    config: RunConfig, pin: IndexPin, world: World, store: Store, log: RunLog, open_feed: OpenFeed,
    started_s: float,
) -> None:  # fmt: skip
    if _has_ended(config, world, store, log):
        return
    # Before a checkpoint is read: what another world publishes later would be a second trajectory.
    lease = Lease.take(store) if world.rank == 0 else None
    told = world.gather_json([lease.token if lease else "", os.environ.get("EOSIN_NODE_POOL", "")])
    token, pools = str(told[0][0]), Counter(pool for _, pool in told if pool)
    publisher = Publisher(store, config, pin.snapshot_id, log, lease, token)
    _exit_on_sigterm(publisher, log, config.train.elastic.shutdown_timeout_s)
    trainer = Trainer(config, world, log)
    with shared_memory(config, store) as folder:
        start, found_in = resume_training(trainer, store, folder, log)
        report_start(start.step)
        if world.rank == 0:
            log.event("world", world_size=world.size, start_step=start.step, found_in=found_in,
                      device=str(world.device), **({"pools": pools} if pools else {}),
                      microbatches=[len(world.microbatches_of(r)) for r in range(world.size)])  # fmt: skip
            log.flush()  # who is lost within seconds still stands in the report, with what that cost
            by_speed = config.train.elastic.load_balance == "speed"
            for advice in (
                granularity_advice(world.num_microbatches, world.size) if by_speed else "",
                warm_start_advice(config) if start.step == 0 else "",
            ):
                if advice:
                    log.event("warning", message=advice)
        trainer.memory = start_memory(trainer, store, folder, token)
        if folder is not None:
            trainer.balancer.memory = folder.path / f"time-of-{os.environ.get('LOCAL_RANK', '0')}"
        feed = open_feed(config, pin, log)
        try:
            outcome = trainer.run(feed.source, start, publisher, feed.slide_name)
        except PermanentError:  # training ends for good: what was reached before is not lost with it
            publisher.rescue(_RESCUE_SHARE * config.train.elastic.shutdown_timeout_s)
            raise
        finally:
            feed.source.close()
        publisher.close()
        if world.rank == 0:
            _finish(publisher, config, pin, outcome, log, started_s)
        world.gather_json("published")  # until then nobody leaves or forgets: rank 0 may still be lost
        if trainer.memory is not None:
            trainer.memory.close(forget=True)


def _has_ended(config: RunConfig, world: World, store: Store, log: RunLog) -> bool:
    """Whether training has ended before, on every rank alike. Then rank 0 makes teachers again that have
    been deleted since; whoever comes too late, or for that alone, has no more to do."""
    done = load_training_done(store, config) if world.rank == 0 else None
    if done is not None:
        export_missing(store, config, done, log)
        log.event("skipped", reason="training has ended before", num_steps=done.num_steps)
    return bool(world.gather_json(done is not None)[0])


def _finish(
    publisher: Publisher,
    config: RunConfig,
    pin: IndexPin,
    outcome: ReachedStep,
    log: RunLog,
    started_s: float,
) -> None:
    """Now that all is published, say that training has ended."""
    done = TrainingDone(
        num_steps=outcome.step,
        models=planned_models(config),
        snapshot_id=pin.snapshot_id,
        config_digest=config.digest(),
        wall_s=time.monotonic() - started_s,
        final_loss=outcome.loss,
    )
    publisher.finish(done)
    log.event("done", step=outcome.step, seconds=done.wall_s)


def _join_world(config: RunConfig) -> World:
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = _device()
    if size > 1:
        timeout = timedelta(seconds=config.train.elastic.process_group_timeout_s)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timeout)
    return World(config.train.num_microbatches, rank, size, config.train.deterministic, device)


def _device() -> torch.device:
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def _set_up_process() -> None:
    """What holds for a whole process, so only for one that is a worker and nothing else."""
    # Features near zero decay into denormals, which slow a CPU many times over.
    torch.set_flush_denormal(True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def _exit_on_sigterm(publisher: Publisher, log: RunLog, timeout_s: float) -> None:
    """On SIGTERM publish the newest whole copy of the state and go, without any other rank.

    The main thread may sit in a collective that never ends, where Python runs no signal handler. The
    kernel's handler still writes to a pipe, and a thread that reads it does the work.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)

    def leave() -> None:
        while signal.SIGTERM not in os.read(read_end, 64):
            continue
        try:
            step = publisher.rescue(_RESCUE_SHARE * timeout_s)
            log.event("terminated", durable_step=step)
            log.flush()
        finally:
            os._exit(_TERMINATED)

    threading.Thread(target=leave, name="eosin-sigterm", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
