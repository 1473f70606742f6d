"""The whole state of training as named tensors, and back: what a checkpoint holds.

A rank holds all of it, or its rows of every sharded tensor: rank i of n has the i-th of n equal blocks of
rows, the last ones shorter or empty, as FSDP2 cuts along the first dimension.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_local_save_plan
from torch.distributed.tensor import DTensor

from eosin.errors import PermanentError
from eosin.models.backbone import Backbone
from eosin.training.engine.parallel import local, whole
from eosin.training.engine.step import Learner

Parts = dict[str, dict[str, Tensor]]
_MOMENTS = ("exp_avg", "exp_avg_sq")
LOSS_PART = "loss"
"""Never sharded: a few vectors."""


@dataclass(frozen=True)
class TensorRows:
    """Where a block of rows lies in its tensor of `shape`."""

    first: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TrainingState:
    """A copy on the host of the state after `step` steps; nothing changes it any more.

    `num_pieces` snapshots, one a rank, make up the state; `rows` (by `part/name`) places the tensors of
    which this one has some rows only.
    """

    step: int
    loss: float | None
    parts: Parts
    index: int = 0
    num_pieces: int = 1
    rows: Mapping[str, TensorRows] = field(default_factory=dict)


def copy_state(learner: Learner, step: int, loss: float | None) -> TrainingState:
    """Copy what this rank holds to host memory. Costs 16 bytes a parameter, shared by the ranks that hold
    shards, and the time of one copy."""
    live = live_parts(learner)
    parts = to_host(live)
    if not learner.strategy.is_sharded:
        return TrainingState(step, loss, parts)
    return TrainingState(step, loss, parts, learner.world.rank, learner.world.size, rows_of(learner, live))


def take_share(learner: Learner, step: int, loss: float | None) -> TrainingState:
    """Copy this rank's part of the checkpoint of `step` to host memory: 16 bytes a parameter over all ranks.

    Of shards every rank writes its own, rank 0 also what is not sharded. Replicas are planned by
    torch.distributed.checkpoint: each tensor once, the next always to the rank with the least.
    """
    world, live = learner.world, live_parts(learner)
    rows = rows_of(learner, live)
    if learner.strategy.is_sharded:
        wanted = set(rows) if world.rank else set(rows) | {f"{LOSS_PART}/{name}" for name in live[LOSS_PART]}
    else:
        wanted = _shares(flatten(live), world.size)[world.rank]
    parts = {
        part: {name: value for name, value in tensors.items() if f"{part}/{name}" in wanted}
        for part, tensors in live.items()
    }
    return TrainingState(step, loss, to_host(parts), world.rank, world.size, rows)


def _shares(state: dict[str, Tensor], num_ranks: int) -> list[set[str]]:
    """`part/name` of the tensors of every rank; all ranks come to the same, without asking each other."""
    local_plan = create_default_local_save_plan(state, is_coordinator=True)
    planner = DefaultSavePlanner(flatten_state_dict=False)
    plans, _ = planner.create_global_plan([local_plan] * num_ranks)
    return [{item.index.fqn for item in plan.items} for plan in plans]


def rows_of(learner: Learner, live: Parts) -> dict[str, TensorRows]:
    """Where this rank's rows of every sharded tensor lie, by `part/name`."""
    rank, size = learner.world.rank, learner.world.size
    return {
        name: TensorRows(row_block(value.shape[0], rank, size).start, tuple(value.shape))
        for name, value in flatten(live).items()
        if isinstance(value, DTensor)
    }


def row_block(num_rows: int, index: int, num_pieces: int) -> range:
    """Rows of piece `index` of a tensor that is cut into `num_pieces`, as FSDP2 (torch.chunk) cuts it."""
    each = -(-num_rows // num_pieces)
    start = min(index * each, num_rows)
    return range(start, min(start + each, num_rows))


def to_host(parts: Parts) -> Parts:
    """Copies of what this rank holds of every tensor, asked for together and waited for once.

    From a GPU into pinned memory, which is several times as fast; torch keeps it for the next copy.
    """
    copies = {
        part: {name: _begin_copy(local(value.detach())) for name, value in tensors.items()}
        for part, tensors in parts.items()
    }
    if any(local(value).is_cuda for tensors in parts.values() for value in tensors.values()):
        torch.cuda.current_stream().synchronize()
    return copies


def _begin_copy(value: Tensor) -> Tensor:
    if not value.is_cuda:
        return value.to("cpu", copy=True)
    copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    return copy.copy_(value, non_blocking=True)


def live_parts(learner: Learner) -> Parts:
    """References to every tensor of the state, by part: student, teacher, gram, optimizer, loss."""
    prepare_moments(learner, 0)
    centers = {"dino_center": learner.centers.dino}
    if learner.centers.ibot is not None:
        centers["ibot_center"] = learner.centers.ibot
    if learner.frozen is not None:
        centers["distilled"] = learner.frozen.digest
    moments = {
        f"{moment}.{name}": learner.optimizer.state[parameter][moment]
        for name, parameter in _trained(learner)
        for moment in _MOMENTS
    }
    gram = {} if learner.gram is None else {"gram": dict(learner.gram.state_dict())}
    return {
        "student": dict(learner.student.state_dict()),
        "teacher": dict(learner.teacher.state_dict()),
        **gram,
        "optimizer": moments,
        LOSS_PART: centers,
    }


def flatten(parts: Parts) -> dict[str, Tensor]:
    """Tensors by `part/name`, as one file holds them."""
    return {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()}


def unflatten(tensors: Mapping[str, Tensor]) -> Parts:
    """The inverse of `flatten`."""
    parts: Parts = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = tensor
    return parts


def prepare_moments(learner: Learner, step: int) -> None:
    """Give AdamW the state it has after `step` steps, moments zero, where it has none yet."""
    for _, parameter in _trained(learner):
        if parameter in learner.optimizer.state:
            continue
        learner.optimizer.state[parameter] = {
            "step": torch.tensor(float(step), device=parameter.device),
            **{moment: torch.zeros_like(parameter) for moment in _MOMENTS},
        }


def _require_fit(live: Parts, parts: Parts, index: int, num_pieces: int, source: str) -> None:
    """Piece `index` of `num_pieces` must have its rows of every tensor."""
    for part, tensors in live.items():
        theirs, cut = parts.get(part, {}), (0, 1) if part == LOSS_PART else (index, num_pieces)
        fits = tensors.keys() == theirs.keys() and all(
            theirs[name].shape == (len(row_block(tensor.shape[0], *cut)), *tensor.shape[1:])
            for name, tensor in tensors.items()
        )
        if not fits:
            raise PermanentError(f"{source}: its {part} does not fit the network of this run")


def put_rows(learner: Learner, tensor: Tensor, rows: Tensor, first: int) -> None:
    """Copy the rows that this rank holds of `tensor` out of `rows`, of which the first is row `first`."""
    world, num_rows = learner.world, tensor.shape[0]
    own = row_block(num_rows, world.rank, world.size) if isinstance(tensor, DTensor) else range(num_rows)
    start, stop = max(own.start, first), min(own.stop, first + rows.shape[0])
    if start < stop:
        local(tensor)[start - own.start : stop - own.start].copy_(rows[start - first : stop - first])


def set_step(learner: Learner, step: int) -> None:
    """Tell the optimizer how many steps it has taken (its bias correction depends on it)."""
    prepare_moments(learner, step)
    for _, parameter in _trained(learner):
        learner.optimizer.state[parameter]["step"].fill_(float(step))


@torch.no_grad()
def hand_out(learner: Learner, step: int, held: Mapping[int, Parts], holders: Sequence[int]) -> int:
    """Put a state back that ranks hold in pieces, on every rank; returns the step. A collective.

    Piece i lies with rank `holders[i]`, in its `held[i]`, as `copy_state` cut it in a world of
    `len(holders)` shards (one: a whole state, of a world of replicas). One piece of one tensor travels at a
    time, so no rank holds more than that beside its own share. Raises `PermanentError`, on the rank that
    holds it, for a piece that does not fit the network.
    """
    world, live = learner.world, live_parts(learner)
    for index, parts in held.items():
        source = f"piece {index} of the snapshot of step {step} in memory"
        _require_fit(live, parts, index, len(holders), source)
    for part, tensors in live.items():
        num_pieces = 1 if part == LOSS_PART else len(holders)
        for name, tensor in sorted(tensors.items()):
            for index in range(num_pieces):
                block = row_block(tensor.shape[0], index, num_pieces)
                rows = torch.empty(len(block), *tensor.shape[1:], dtype=tensor.dtype, device=world.device)
                if holders[index] == world.rank:
                    rows.copy_(held[index][part][name])
                if len(block):
                    put_rows(learner, tensor, world.broadcast(rows, holders[index]), block.start)
    set_step(learner, step)
    return step


@torch.no_grad()
def synchronize(learner: Learner, step: int) -> int:
    """Give every rank the state and step of rank 0, where each holds all of it; returns the step."""
    world = learner.world
    step = int(world.broadcast(torch.tensor([step], dtype=torch.int64, device=world.device)))
    for _, tensor in sorted(flatten(live_parts(learner)).items()):
        world.broadcast(tensor)
    set_step(learner, step)
    return step


@torch.no_grad()
def teacher_copy(learner: Learner, like: Backbone) -> Backbone | None:
    """The teacher's backbone in the host memory of rank 0; None on the others. A collective.

    `like`: a backbone of the same shapes, whose values are overwritten. Of a sharded teacher one tensor
    at a time is gathered.
    """
    own = like.state_dict()
    for name, value in learner.teacher.backbone.state_dict().items():
        gathered = whole(value)
        if learner.world.rank == 0:
            own[name].copy_(gathered)
    return like if learner.world.rank == 0 else None


def _trained(learner: Learner) -> Iterator[tuple[str, Tensor]]:
    return ((name, p) for name, p in learner.student.named_parameters() if p.requires_grad)
