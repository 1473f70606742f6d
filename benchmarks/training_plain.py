"""The training step of DINOv2 written for reading: the peer of `training.py`.

One forward pass a crop size, all logits at once, autograd for every gradient, parameters moved in a loop,
nothing compiled. It shares networks, schedules and parameter groups with eosin, and none of its losses but
KoLeo.
"""

from typing import Any

import torch
import torch.nn.functional as F
from clock import Clock
from torch import Tensor

from eosin.config import RunConfig
from eosin.models.network import Network, build_network
from eosin.training.engine.microbatch import Microbatch
from eosin.training.engine.step import Learner
from eosin.training.losses.uniformity import koleo
from eosin.training.world import World


class Plain:
    """Student and teacher as they begin in eosin, and how they are moved."""

    def __init__(self, config: RunConfig, device: torch.device, clock: Clock) -> None:
        plain = config.model_copy(update={"train": config.train.model_copy(update={"compile": False})})
        self._ours = Learner(
            plain, build_network(config), World(config.train.num_microbatches, device=device)
        )
        self.student, self.teacher = self._ours.student, self._ours.teacher
        self._config, self._clock = config.train, clock
        groups = [
            {"params": g["params"], "multipliers": g["multipliers"]}
            for g in self._ours.optimizer.param_groups
        ]
        betas = (config.train.optimizer.beta1, config.train.optimizer.beta2)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, foreach=False, fused=False)

    def step(self, step: int, microbatches: dict[int, Microbatch]) -> float:
        values, clock = self._ours.schedules.at(step), self._clock
        (microbatch,) = microbatches.values()
        with clock.part("losses"), torch.no_grad(), self._ours._autocast():
            dino, ibot = self._targets(microbatch, values.teacher_temperature)
        self.optimizer.zero_grad()
        with clock.part("losses"), self._ours._autocast():
            loss = self._loss(microbatch, dino, ibot)
        with clock.part("backward"):
            loss.backward()
        self._update(values)
        return loss.item()

    def _targets(self, microbatch: Microbatch, temperature: float) -> tuple[Tensor, Tensor]:
        tokens = self._tokens(self.teacher, microbatch.global_crops.flatten(0, 1))
        classes = _logits(self.teacher.dino_head, tokens[:, 0]) / temperature
        hidden = tokens[:, self.teacher.backbone.num_prefix_tokens :][microbatch.masks]
        patches = _logits(self.teacher.patch_head, hidden) / temperature
        return _sinkhorn(classes), _sinkhorn(patches)

    def _loss(self, microbatch: Microbatch, dino: Tensor, ibot: Tensor) -> Tensor:
        config, student = self._config, self.student
        num_local, n = microbatch.local_crops.shape[:2]
        tokens = self._tokens(student, microbatch.global_crops.flatten(0, 1), microbatch.masks)
        local = self._tokens(student, microbatch.local_crops.flatten(0, 1))[:, 0]
        temperature = config.dino.student_temperature
        ours = (_logits(student.dino_head, tokens[:, 0]) / temperature).log_softmax(-1).unflatten(0, (2, n))
        theirs = (
            (_logits(student.dino_head, local) / temperature).log_softmax(-1).unflatten(0, (num_local, n))
        )
        targets = dino.unflatten(0, (2, n))
        crossed = -(ours * targets.flip(0)).sum()
        pairs = -sum((theirs * targets[view]).sum() for view in range(2))
        assert microbatch.masks is not None
        hidden = tokens[:, student.backbone.num_prefix_tokens :][microbatch.masks]
        patches = (_logits(student.patch_head, hidden) / temperature).log_softmax(-1)
        weights = (1.0 / microbatch.masks.sum(1, keepdim=True).clamp(min=1)).expand_as(microbatch.masks)[
            microbatch.masks
        ]
        masked = -((patches * ibot).sum(-1) * weights).sum() / (2 * n)
        views = tokens[:, 0].unflatten(0, (2, n))
        spread = config.koleo.weight * (koleo(views[0]) + koleo(views[1]))
        loss: Tensor = (crossed + pairs) / (2 + 2 * num_local) / n + config.ibot.weight * masked + spread
        return loss

    def _tokens(self, network: Network, images: Tensor, masks: Tensor | None = None) -> Tensor:
        vit, backbone = network.backbone.vit, network.backbone
        with self._clock.part("forward" if network is self.student else "teacher"):
            x = vit.patch_embed(images)
            if masks is not None:
                x = torch.where(masks.view(*x.shape[:3], 1), backbone.mask_token.to(x.dtype), x)
            x = vit.norm_pre(vit._pos_embed(x))
            for block in vit.blocks:
                x = block(x)
            return vit.norm(x)  # type: ignore[no-any-return]  # timm is untyped

    @torch.no_grad()
    def _update(self, values: Any) -> None:
        with self._clock.part("optimizer"):
            self._move_student(values)
        with self._clock.part("EMA"):
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.mul_(values.momentum).add_(fast, alpha=1 - values.momentum)

    def _move_student(self, values: Any) -> None:
        for module in self.student.submodules().values():
            torch.nn.utils.clip_grad_norm_(module.parameters(), self._config.optimizer.clip_grad_norm or 1e9)
        for group in self.optimizer.param_groups:
            factors = group["multipliers"]
            group["lr"] = factors.lr * (values.last_layer_lr if factors.last_layer else values.lr)
            group["weight_decay"] = factors.weight_decay * values.weight_decay
        self.optimizer.step()


def _logits(head: Any, x: Tensor) -> Tensor:
    return F.linear(head(x), head.last_layer.weight()).float()


def _sinkhorn(scores: Tensor, num_iterations: int = 3) -> Tensor:
    q = (scores - scores.max()).exp().T
    q = q / q.sum()
    for _ in range(num_iterations):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T
