"""Resuming: the newest step that is whole in memory or in the bucket, agreed on by all processes of a world.

All tell each other what their nodes hold, come to the same choice, and those that hold the chosen pieces hand
them out. Then they begin to keep snapshots.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from eosin.config import RunConfig
from eosin.errors import PermanentError, TransientError, UserError
from eosin.layout import RunLayout, step_of
from eosin.observability import RunLog
from eosin.runs import complete_steps
from eosin.storage import Store
from eosin.training.checkpoints.lease import known_secret, run_secret
from eosin.training.checkpoints.memory import Memory, Push, is_possible
from eosin.training.checkpoints.neighbour import Address, Receiver, neighbour_of, own_host, send
from eosin.training.checkpoints.shm import Piece, ShmFolder, shm_root
from eosin.training.checkpoints.state import Parts, flatten, live_parts, unflatten
from eosin.training.engine.parallel import local
from eosin.training.loop import ReachedStep, Trainer, planned_models
from eosin.training.world import World

# A header of names, and rows that do not divide evenly.
_FILE_OVERHEAD_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Bounds:
    """What the bucket says of memory: older than `durable_step` is of no use, and from `num_steps` or the
    first teacher that is not in the bucket yet on nothing counts, or that teacher would never be made."""

    durable_step: int
    before_step: int


@dataclass(frozen=True)
class Choice:
    """A whole snapshot and the lowest rank that holds each of its pieces."""

    step: int
    world: str
    holders: tuple[int, ...]
    loss: float | None = None


@contextmanager
def shared_memory(config: RunConfig, store: Store) -> Iterator[ShmFolder | None]:
    """This node's folder of the run, held while the block runs. None where snapshots in memory are off,
    or the system has no shared memory. Raises `UserError` where they are demanded."""
    mode, root = config.train.elastic.memory_snapshots, shm_root()
    if mode == "off" or (mode == "auto" and not _usable(root)):
        yield None
        return
    if not _usable(root):
        raise UserError(
            f"{root} is no folder that can be written to, and train.elastic.memory_snapshots is on",
            hint="mount shared memory there, or set train.elastic.memory_snapshots=auto",
        )
    folder = ShmFolder.of_run(run_secret(store))
    held = folder.open()
    try:
        yield folder
    finally:
        os.close(held)


def forget(store: Store) -> None:
    """Delete what this node still holds of a run that has ended."""
    secret = known_secret(store)
    if secret is not None:
        ShmFolder.of_run(secret).remove()


def resume_training(
    trainer: Trainer, store: Store, folder: ShmFolder | None, log: RunLog
) -> tuple[ReachedStep, str]:
    """Take up the newest state that is whole somewhere, on every rank; and where it was found.

    Raises what reading a checkpoint raises, and `TransientError` for a snapshot that does not fit: it is
    discarded, and a restart takes the next.
    """
    world, config = trainer.world, trainer.config
    limits = bounds(store, config, planned_models(config)) if world.rank == 0 else None
    while (choice := _agree(world, config, folder, limits)) is not None:
        pieces = load_held(folder, choice, world.rank, log) if folder is not None else {}
        if all(world.gather_json(pieces is not None)):
            return _take(trainer, choice, pieces or {}, folder), "memory"
    start = trainer.resume(store)
    return start, "bucket" if start.step else "nothing"


def bounds(store: Store, config: RunConfig, models: Iterable[str]) -> Bounds:
    """What the bucket holds now. `models`: names of all teachers the run exports, by step."""
    durable = max(complete_steps(store), default=0)
    # A checkpoint follows every teacher of its step and before.
    later = (name for name in models if (step_of(name) or 0) > durable)
    missing = (step_of(name) for name in later if not store.exists(RunLayout.teacher_card(name)))
    return Bounds(durable, next(missing, None) or config.train.num_steps)


def choose(held: list[list[Piece]], limits: Bounds, config_digest: str) -> Choice | None:
    """The newest snapshot that ranks hold all pieces of; `held` by rank. None: the bucket knows better."""
    holders: dict[tuple[int, str, int], dict[int, int]] = defaultdict(dict)
    losses: dict[tuple[int, str], float | None] = {}
    for rank, pieces in enumerate(held):
        for piece in pieces:
            if piece.config_digest == config_digest:
                holders[piece.step, piece.world, piece.num_pieces].setdefault(piece.index, rank)
                losses[piece.step, piece.world] = piece.loss
    whole = [
        Choice(step, world, tuple(found[index] for index in range(num_pieces)), losses[step, world])
        for (step, world, num_pieces), found in holders.items()
        if len(found) == num_pieces and limits.durable_step <= step < limits.before_step and step > 0
    ]
    return max(whole, key=lambda choice: (choice.step, choice.world), default=None)


def load_held(folder: ShmFolder, choice: Choice, rank: int, log: RunLog) -> dict[int, Parts] | None:
    """The chosen pieces that `rank` is to hand out, by index. None where one is damaged: it is discarded."""
    found: dict[int, Parts] = {}
    for piece in folder.pieces():
        chosen = (piece.step, piece.world) == (choice.step, choice.world)
        if chosen and piece.index not in found and choice.holders[piece.index] == rank:
            try:
                found[piece.index] = unflatten(folder.load(piece))
            except PermanentError as error:
                folder.discard(piece)
                log.event("warning", message=f"{error.message}; it is discarded")
                return None
    return found if len(found) == choice.holders.count(rank) else None


def start_memory(trainer: Trainer, store: Store, folder: ShmFolder | None, world_token: str) -> Memory | None:
    """What keeps this process's snapshots from now on; None where another process of the node does, or
    where there is no room. A collective. Raises `UserError` where there is none and it is demanded."""
    learner, log, sharded = trainer.learner, trainer.log, trainer.learner.strategy.is_sharded
    index, num_pieces = (learner.world.rank, learner.world.size) if sharded else (0, 1)
    digest = trainer.config.digest()
    piece = Piece(step=0, index=index, num_pieces=num_pieces, world=world_token, config_digest=digest)
    num_bytes = sum(local(tensor).nbytes for tensor in flatten(live_parts(learner)).values())
    possible = folder is not None and is_possible(trainer.config, folder, piece, num_bytes, log)
    if not sharded:
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        return Memory(folder, piece, log) if possible and first and folder is not None else None
    # One missing piece makes the others useless.
    if not all(learner.world.gather_json(possible)) or folder is None:
        return None
    return Memory(folder, piece, log, *_neighbour(learner.world, folder, run_secret(store), num_bytes))


def _neighbour(
    world: World, folder: ShmFolder, secret: str, num_bytes: int
) -> tuple[Push | None, Receiver | None]:
    """How to leave this rank's pieces on another node, and what takes those of others. A collective."""
    host = own_host(os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "1")))
    receiver = Receiver(folder, secret, 2 * num_bytes + _FILE_OVERHEAD_BYTES, host)
    told = [Address(**each) for each in world.gather_json(asdict(receiver.address))]
    neighbour = neighbour_of(world.rank, [address.host for address in told])
    if neighbour is None:
        receiver.close()
        return None, None
    return lambda piece, path: send(piece, path, told[neighbour], secret), receiver


def _agree(world: World, config: RunConfig, folder: ShmFolder | None, limits: Bounds | None) -> Choice | None:
    mine = [piece.model_dump(mode="json") for piece in folder.pieces()] if folder is not None else []
    told = world.gather_json({"pieces": mine, "limits": asdict(limits) if limits else None})
    held = [[Piece.model_validate(piece) for piece in each["pieces"]] for each in told]
    return choose(held, Bounds(**told[0]["limits"]), config.digest())


def _take(
    trainer: Trainer, choice: Choice, pieces: dict[int, Parts], folder: ShmFolder | None
) -> ReachedStep:
    try:
        return trainer.take_over(choice.step, choice.loss, choice.holders, pieces)
    except PermanentError as error:
        if folder is not None:
            for piece in folder.pieces():
                if (piece.step, piece.world) == (choice.step, choice.world):
                    folder.discard(piece)
        raise TransientError(error.message, hint="it is discarded; the next start takes another") from error


def _usable(root: Path) -> bool:
    return root.is_dir() and os.access(root, os.W_OK | os.X_OK)
