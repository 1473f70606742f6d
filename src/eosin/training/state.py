"""The whole state of training as named tensors, and back: what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from eosin.errors import PermanentError
from eosin.training.step import Learner

Parts = dict[str, dict[str, Tensor]]
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Snapshot:
    """A copy on the host of the state after `step` steps; nothing changes it any more."""

    step: int
    loss: float | None
    parts: Parts


def take_snapshot(learner: Learner, step: int, loss: float | None) -> Snapshot:
    """Copy the state to host memory. Costs 16 bytes a parameter and the time of one copy."""
    parts = {
        part: {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
        for part, tensors in live_parts(learner).items()
    }
    return Snapshot(step, loss, parts)


def live_parts(learner: Learner) -> Parts:
    """References to every tensor of the state, by part: student, teacher, optimizer, loss."""
    prepare_moments(learner, 0)
    centers = {"dino_center": learner.centers.dino}
    if learner.centers.ibot is not None:
        centers["ibot_center"] = learner.centers.ibot
    moments = {
        f"{moment}.{name}": learner.optimizer.state[parameter][moment]
        for name, parameter in _trained(learner)
        for moment in _MOMENTS
    }
    return {
        "student": dict(learner.student.state_dict()),
        "teacher": dict(learner.teacher.state_dict()),
        "optimizer": moments,
        "loss": centers,
    }


def prepare_moments(learner: Learner, step: int) -> None:
    """Give AdamW the state it has after `step` steps, moments zero, where it has none yet."""
    for _, parameter in _trained(learner):
        if parameter in learner.optimizer.state:
            continue
        learner.optimizer.state[parameter] = {
            "step": torch.tensor(float(step), device=parameter.device),
            **{moment: torch.zeros_like(parameter) for moment in _MOMENTS},
        }


@torch.no_grad()
def restore(learner: Learner, step: int, parts: Parts, source: str) -> None:
    """Put a state back, on this rank. Raises `PermanentError` where it does not fit the network."""
    live = live_parts(learner)
    for part, tensors in live.items():
        theirs = parts.get(part, {})
        fits = tensors.keys() == theirs.keys() and all(
            tensors[name].shape == theirs[name].shape for name in tensors
        )
        if not fits:
            raise PermanentError(f"{source}: its {part} does not fit the network of this run")
        for name, tensor in tensors.items():
            tensor.copy_(theirs[name])
    set_step(learner, step)


def set_step(learner: Learner, step: int) -> None:
    """Tell the optimizer how many steps it has taken (its bias correction depends on it)."""
    prepare_moments(learner, step)
    for _, parameter in _trained(learner):
        learner.optimizer.state[parameter]["step"].fill_(float(step))


@torch.no_grad()
def synchronize(learner: Learner, step: int, source: int = 0) -> int:
    """Give every rank the state and step of rank `source`; returns the step."""
    world = learner.world
    steps = world.broadcast(torch.tensor([step], dtype=torch.int64, device=world.device), source)
    step = int(steps)
    for tensors in live_parts(learner).values():
        for name in sorted(tensors):
            world.broadcast(tensors[name], source)
    set_step(learner, step)
    return step


def _trained(learner: Learner) -> Iterator[tuple[str, Tensor]]:
    return ((name, p) for name, p in learner.student.named_parameters() if p.requires_grad)
