"""One training step, the same whatever the number of ranks that share it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eosin.config import RunConfig
from eosin.models.network import Network, speed_up, teacher_of
from eosin.training.engine.objective import TERMS, Objective, Targets
from eosin.training.engine.parallel import clip_, local, spread
from eosin.training.engine.param_groups import param_groups
from eosin.training.engine.schedules import Schedules, StepValues
from eosin.training.engine.slots import Slot, blank_slot
from eosin.training.world import World


class NonFinite(ArithmeticError):
    """The loss or a gradient is not finite; nothing was updated. `slots`: where, empty if unknown."""

    def __init__(self, step: int, what: str, slots: tuple[int, ...]) -> None:
        super().__init__(f"step {step}: {what} is not finite")
        self.step = step
        self.what = what
        self.slots = slots


@dataclass(frozen=True)
class StepResult:
    """What a step came to, the same on every rank."""

    loss: float
    terms: dict[str, float]
    teacher_entropy: float
    """Mean over the class tokens, in nats."""
    grad_norms: dict[str, float]
    """Before clipping, by submodule."""
    values: StepValues
    teacher_features: Tensor | None = None
    """[rows, dim] class tokens of this rank's first global views, before the head; not the same on all."""
    center_norm: float | None = None
    """Length of the mean teacher logits, where softmax centring keeps it."""


class Learner:
    """Student, teacher, optimizer and loss state on this rank, whole or in shards."""

    def __init__(
        self, config: RunConfig, student: Network, world: World, teacher: Network | None = None
    ) -> None:
        """`teacher`: the one to begin with; None: a copy of `student`."""
        self.world = world
        self.config = config.train
        self.student = student.train()
        self.student.backbone.mask_token.requires_grad_(config.train.uses_ibot)
        self.teacher = teacher_of(self.student if teacher is None else teacher)
        self._blank = blank_slot(config, student.backbone.patch_size, world.device)
        self.spread = spread(self.student, self.teacher, config.train, world)
        for network in (self.student, self.teacher):
            speed_up(network, config.train)
        self.objective = Objective(config.train, world)
        self.centers = self.objective.new_centers(self.student)
        self.schedules = Schedules(config.train)
        optimizer = config.train.optimizer
        self.optimizer = torch.optim.AdamW(
            param_groups(self.student, optimizer),
            lr=0.0,
            betas=(optimizer.beta1, optimizer.beta2),
            # The fused kernel rounds the last few values of a tensor otherwise than those before, so that
            # its bits depend on where shards are cut.
            fused=not config.train.deterministic,
            foreach=config.train.deterministic,
        )

    def step(self, step: int, slots: Mapping[int, Slot]) -> StepResult:
        """Take step `step` (from 0) on this rank's `slots`.

        Raises `NonFinite`, on every rank alike and before anything has moved but the centres, where the
        loss or its gradient is not finite.
        """
        values = self.schedules.at(step)
        surplus = dict.fromkeys(self._surplus(len(slots)), self._blank)
        with self._autocast():
            targets = self.objective.targets(
                self.teacher, slots, self.centers, values.teacher_temperature, surplus
            )
        terms = self._accumulate(slots, targets)
        shares = self._share_terms(step, terms, targets)
        norms = self._clip(step)
        self._update(values)
        named = dict(zip(TERMS, shares[:-1].tolist(), strict=True))
        features = [targets.views[slot].features[0] for slot in slots]
        return StepResult(
            float(shares[:-1].sum()), named, float(shares[-1]), norms, values,
            torch.cat(features) if features else None, self._center_norm(),
        )  # fmt: skip

    def _center_norm(self) -> float | None:
        return None if self.config.centering == "sinkhorn" else float(self.centers.dino.norm())

    def _surplus(self, num_slots: int) -> range:
        """Indices of the teacher's passes that only keep this rank in step with the others."""
        return range(-1, num_slots - self.spread.num_teacher_passes() - 1, -1)

    def _accumulate(self, slots: Mapping[int, Slot], targets: Targets) -> dict[int, Tensor]:
        """Gradients of all slots of all ranks, summed; this rank's terms by slot."""
        terms: dict[int, Tensor] = {}
        self.spread.begin()
        for index in self.spread.passes():
            if index is None:
                self._pass_of_zero_weight(slots, targets)
            else:
                with self._autocast():
                    share = self.objective.slot_terms(self.student, index, slots[index], targets)
                share[: len(TERMS)].sum().backward()  # type: ignore[no-untyped-call]
                terms[index] = share.detach()
            self.spread.end_pass(index)
        self.spread.finish()
        return terms

    def _pass_of_zero_weight(self, slots: Mapping[int, Slot], targets: Targets) -> None:
        """Run the student with the others, on a slot of its own again, and add nothing."""
        index = max(slots, default=-1)
        slot = slots.get(index, self._blank)
        with self._autocast():
            share = self.objective.slot_terms(self.student, index, slot, targets)
        (share[: len(TERMS)].sum() * 0.0).backward()  # type: ignore[no-untyped-call]

    def _share_terms(self, step: int, terms: Mapping[int, Tensor], targets: Targets) -> Tensor:
        """Σ of the terms over all slots [6]; raises `NonFinite` naming the slots that are not finite.

        One slot's infinite teacher features spoil every slot's targets, so they are looked for first.
        """
        num_slots, num_terms = self.world.num_slots, len(TERMS) + 1
        rows = {}
        for slot, share in terms.items():
            culprits = torch.zeros(2, num_slots, device=share.device)
            culprits[0, slot] = not targets.is_finite(slot)
            culprits[1, slot] = not share.isfinite().all()
            rows[slot] = torch.cat([share.nan_to_num(posinf=0.0, neginf=0.0), culprits.flatten()])
        like = torch.zeros(num_terms + 2 * num_slots, device=self.world.device)
        total = self.world.sum_over_slots(rows, like).cpu()
        for flags in total[num_terms:].view(2, num_slots):
            if flags.any():
                raise NonFinite(step, "the loss", tuple(flags.nonzero().flatten().tolist()))
        return total[:num_terms]

    def _clip(self, step: int) -> dict[str, float]:
        limit = self.config.optimizer.clip_grad_norm
        norms = self.spread.gradient_norms()
        values = {name: float(norm) for name, norm in norms.items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise NonFinite(step, f"the gradient of {', '.join(bad)}", ())
        for name, module in self.student.submodules().items() if limit is not None else ():
            clip_(module, norms[name], limit or math.inf)
        return values

    @torch.no_grad()
    def _update(self, values: StepValues) -> None:
        for group in self.optimizer.param_groups:
            factors = group["multipliers"]
            group["lr"] = factors.lr * (values.last_layer_lr if factors.last_layer else values.lr)
            group["weight_decay"] = factors.weight_decay * values.weight_decay
        self.optimizer.step()
        teacher = [local(parameter) for parameter in self.teacher.parameters()]
        student = [local(parameter) for parameter in self.student.parameters()]
        torch._foreach_mul_(teacher, values.momentum)
        torch._foreach_add_(teacher, student, alpha=1 - values.momentum)

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=enabled)
