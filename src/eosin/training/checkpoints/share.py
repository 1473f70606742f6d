"""Which tensors a rank writes into a checkpoint: each exactly once, shared out by size."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_local_save_plan

from eosin.training.checkpoints.state import LOSS_PART, Snapshot, flat_parts, live_parts, rows_of, to_host
from eosin.training.engine.step import Learner


def take_share(learner: Learner, step: int, loss: float | None) -> Snapshot:
    """Copy this rank's part of the checkpoint of `step` to host memory: 16 bytes a parameter over all ranks.

    Of shards every rank writes its own, rank 0 also what is not sharded. Replicas are planned by
    torch.distributed.checkpoint: each tensor once, the next always to the rank with the least.
    """
    world, live = learner.world, live_parts(learner)
    rows = rows_of(learner, live)
    if learner.spread.is_sharded:
        wanted = set(rows) if world.rank else set(rows) | {f"{LOSS_PART}/{name}" for name in live[LOSS_PART]}
    else:
        wanted = _shares(flat_parts(learner), world.size)[world.rank]
    parts = {
        part: {name: value for name, value in tensors.items() if f"{part}/{name}" in wanted}
        for part, tensors in live.items()
    }
    return Snapshot(step, loss, to_host(parts), world.rank, world.size, rows)


def _shares(state: dict[str, Tensor], num_ranks: int) -> list[set[str]]:
    """`part/name` of the tensors of every rank; all ranks come to the same, without asking each other."""
    local_plan = create_default_local_save_plan(state, is_coordinator=True)
    planner = DefaultSavePlanner(flatten_state_dict=False)
    plans, _ = planner.create_global_plan([local_plan] * num_ranks)
    return [{item.index.fqn for item in plan.items} for plan in plans]
