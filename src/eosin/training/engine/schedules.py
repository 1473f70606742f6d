"""Every schedule in steps: a pure function of the configuration and the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from eosin.config.train import TrainConfig


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


class Schedules:
    """All schedules of a run. The learning rate is scaled by sqrt(batch_size / 1024)."""

    def __init__(self, config: TrainConfig) -> None:
        optimizer, dino = config.optimizer, config.dino
        self.peak_lr = optimizer.lr * math.sqrt(config.batch_size / 1024)
        warmup = round(dino.teacher_temperature_warmup_share * config.num_steps)
        self._lr = CosineSchedule(self.peak_lr, optimizer.min_lr, config.num_steps, optimizer.warmup_steps)
        self._weight_decay = CosineSchedule(
            optimizer.weight_decay, optimizer.weight_decay_end, config.num_steps
        )
        self._momentum = CosineSchedule(config.momentum, 1.0, config.num_steps)
        self._temperature = CosineSchedule(
            dino.teacher_temperature,
            dino.teacher_temperature,
            warmup,
            warmup,
            dino.teacher_temperature_warmup,
        )
        self._freeze_steps = optimizer.freeze_last_layer_steps

    def at(self, step: int) -> StepValues:
        """The values with which step `step` (from 0) is taken."""
        lr = self._lr(step)
        return StepValues(
            lr=lr,
            last_layer_lr=0.0 if step < self._freeze_steps else lr,
            weight_decay=self._weight_decay(step),
            momentum=self._momentum(step),
            teacher_temperature=self._temperature(step),
        )
