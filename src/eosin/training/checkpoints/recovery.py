"""Where training goes on: at the newest step that is whole somewhere, in memory or in the bucket.

All processes of a new world tell each other what their nodes hold, come to the same choice, and those that
hold the chosen pieces hand them out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from eosin.config import RunConfig
from eosin.errors import PermanentError
from eosin.layout import RunLayout, step_of
from eosin.observability import RunLog
from eosin.storage import Store
from eosin.training.checkpoints.checkpoint import complete_steps
from eosin.training.checkpoints.shm import Piece, ShmFolder, unflatten
from eosin.training.checkpoints.state import Parts


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
