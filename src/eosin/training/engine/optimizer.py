"""The optimizer: AdamW over groups of parameters, and the schedules of its rates and of the teacher."""

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from eosin.config.train import OptimizerConfig, PhaseConfig, TrainConfig
from eosin.models.network import Network

_BLOCK = re.compile(r"vit\.blocks\.(\d+)\.")
_EMBEDDINGS = ("vit.pos_embed", "vit.patch_embed.", "vit.cls_token", "vit.reg_token", "mask_token")


@dataclass(frozen=True)
class Multipliers:
    """Factors on the scheduled learning rate and weight decay; `last_layer` has a rate of its own."""

    lr: float
    weight_decay: float
    last_layer: bool


def multipliers(network: Network, config: OptimizerConfig) -> dict[str, Multipliers]:
    """Factors of every trained parameter of `network`, by name.

    Backbone layer i of n blocks (0: embeddings, n + 1: final norm) has layer_decay^(n + 1 − i). Biases,
    norms and LayerScale are not decayed; position embeddings and tokens are.
    """
    return {
        name: Multipliers(
            lr=_lr_multiplier(name, network.backbone.depth, config),
            weight_decay=0.0 if _undecayed(name) else 1.0,
            last_layer="last_layer" in name,
        )
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


def param_groups(network: Network, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups for torch's AdamW, one for each distinct `Multipliers` (under the key `multipliers`)."""
    parameters: dict[str, nn.Parameter] = dict(network.named_parameters())
    groups: dict[Multipliers, list[nn.Parameter]] = defaultdict(list)
    for name, factors in multipliers(network, config).items():
        groups[factors].append(parameters[name])
    return [{"params": members, "multipliers": factors} for factors, members in groups.items()]


def build_optimizer(student: Network, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over `param_groups`; its rates are set before every step (`apply_values`)."""
    optimizer = config.optimizer
    return torch.optim.AdamW(
        param_groups(student, optimizer),
        lr=0.0,
        betas=(optimizer.beta1, optimizer.beta2),
        # The fused kernel rounds the last few values of a tensor otherwise than those before, so that
        # its bits depend on where shards are cut.
        fused=not config.deterministic,
        foreach=config.deterministic,
    )


def apply_values(optimizer: torch.optim.Optimizer, values: "StepValues") -> None:
    """Give each group its learning rate and weight decay of a step."""
    for group in optimizer.param_groups:
        factors = group["multipliers"]
        group["lr"] = factors.lr * (values.last_layer_lr if factors.last_layer else values.lr)
        group["weight_decay"] = factors.weight_decay * values.weight_decay


def _lr_multiplier(name: str, depth: int, config: OptimizerConfig) -> float:
    module, _, local = name.partition(".")
    if module != "backbone":
        return 1.0
    block = _BLOCK.match(local)
    layer = int(block[1]) + 1 if block else 0 if local.startswith(_EMBEDDINGS) else depth + 1
    patch_embed = config.patch_embed_lr_multiplier if "patch_embed" in local else 1.0
    return float(config.layer_decay ** (depth + 1 - layer) * patch_embed)


def _undecayed(name: str) -> bool:
    return name.endswith(("bias", ".gamma", ".gamma_1", ".gamma_2")) or ".norm" in name or "_norm." in name


@dataclass(frozen=True)
class CosineSchedule:
    """Linear from `start` to `base` over `warmup_steps`, then a half cosine to `final` at `num_steps`.

    The last warm-up step has `base` already; from `num_steps` on the value is `final` (as DINO and
    DINOv2 compute it).
    """

    base: float
    final: float
    num_steps: int
    warmup_steps: int = 0
    start: float = 0.0

    def __call__(self, step: int) -> float:
        if step >= self.num_steps:
            return self.final
        if step < self.warmup_steps:
            return self.start + (self.base - self.start) * step / max(self.warmup_steps - 1, 1)
        progress = (step - self.warmup_steps) / (self.num_steps - self.warmup_steps)
        return self.final + 0.5 * (self.base - self.final) * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class StepValues:
    """What the schedules say at one step."""

    lr: float
    last_layer_lr: float
    weight_decay: float
    momentum: float
    teacher_temperature: float


@dataclass(frozen=True)
class _Course:
    """Schedules of one phase of a training, over the steps since its `begin`."""

    begin: int
    lr: CosineSchedule
    weight_decay: CosineSchedule
    momentum: CosineSchedule


def _course(config: TrainConfig, phase: PhaseConfig, begin: int, lr: float, weight_decay: float) -> _Course:
    """The course of `phase` from step `begin` on, where the rates stand at `lr` and `weight_decay`."""
    length, peak = phase.num_steps - begin, phase.lr * math.sqrt(config.batch_size / 1024)
    return _Course(
        begin,
        CosineSchedule(peak, phase.min_lr, length, phase.warmup_steps, lr),
        CosineSchedule(weight_decay, phase.weight_decay_end, length),
        CosineSchedule(phase.momentum, 1.0, length),
    )


class Schedules:
    """All schedules of a run, phase by phase (`train.phases`). The learning rate is scaled by
    sqrt(batch_size / 1024)."""

    def __init__(self, config: TrainConfig) -> None:
        dino, phases = config.dino, config.planned_phases()
        warmup = round(dino.teacher_temperature_warmup_share * phases[0].num_steps)
        self._courses = [_course(config, phases[0], 0, 0.0, config.optimizer.weight_decay)]
        for before, phase in pairwise(phases):
            last, begin = self._courses[-1], before.until_step
            since = begin - last.begin
            self._courses.append(_course(config, phase, begin, last.lr(since), last.weight_decay(since)))
        self._temperature = CosineSchedule(
            dino.teacher_temperature,
            dino.teacher_temperature,
            warmup,
            warmup,
            dino.teacher_temperature_warmup,
        )
        self._freeze_steps = config.optimizer.freeze_last_layer_steps

    def at(self, step: int) -> StepValues:
        """The values with which step `step` (from 0) is taken."""
        course = next(each for each in reversed(self._courses) if each.begin <= step)
        since = step - course.begin
        lr = course.lr(since)
        return StepValues(
            lr=lr,
            last_layer_lr=0.0 if step < self._freeze_steps else lr,
            weight_decay=course.weight_decay(since),
            momentum=course.momentum(since),
            teacher_temperature=self._temperature(step),
        )
