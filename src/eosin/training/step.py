"""One training step, the same whatever the number of ranks that share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eosin.config import RunConfig
from eosin.models.network import Network, teacher_of
from eosin.training.objective import TERMS, Objective, Targets
from eosin.training.param_groups import param_groups
from eosin.training.schedules import Schedules, StepValues
from eosin.training.slots import Slot
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


class Learner:
    """Student, teacher, optimizer and loss state on this rank, replicated on every other."""

    def __init__(self, config: RunConfig, student: Network, world: World) -> None:
        self.world = world
        self.config = config.train
        self.student = student.to(world.device).train()
        self.student.backbone.mask_token.requires_grad_(config.train.uses_ibot)
        self.teacher = teacher_of(self.student)
        self.objective = Objective(config.train, world)
        self.centers = self.objective.new_centers(self.student)
        self.schedules = Schedules(config.train)
        optimizer = config.train.optimizer
        self.optimizer = torch.optim.AdamW(
            param_groups(self.student, optimizer),
            lr=0.0,
            betas=(optimizer.beta1, optimizer.beta2),
            fused=True,
        )
        self.gradients = _flat_gradients(self.student)

    def step(self, step: int, slots: Mapping[int, Slot]) -> StepResult:
        """Take step `step` (from 0) on this rank's `slots`.

        Raises `NonFinite`, on every rank alike and before anything has moved but the centres, where the
        loss or its gradient is not finite.
        """
        values = self.schedules.at(step)
        with self._autocast():
            targets = self.objective.targets(self.teacher, slots, self.centers, values.teacher_temperature)
        terms = self._accumulate(slots, targets)
        shares = self._share_terms(step, terms, targets)
        norms = self._clip(step)
        self._update(values)
        named = dict(zip(TERMS, shares[:-1].tolist(), strict=True))
        return StepResult(float(shares[:-1].sum()), named, float(shares[-1]), norms, values)

    def _accumulate(self, slots: Mapping[int, Slot], targets: Targets) -> dict[int, Tensor]:
        """Gradients of all slots of all ranks, summed into `gradients`; this rank's terms by slot."""
        terms: dict[int, Tensor] = {}
        kept: dict[int, Tensor] = {}
        self.gradients.zero_()
        for index, slot in slots.items():
            with self._autocast():
                share = self.objective.slot_terms(self.student, index, slot, targets)
            share[: len(TERMS)].sum().backward()  # type: ignore[no-untyped-call]
            terms[index] = share.detach()
            if self.world.deterministic:
                kept[index] = self.gradients.clone()
                self.gradients.zero_()
        if self.world.deterministic:
            self.gradients.copy_(self.world.sum_over_slots(kept, self.gradients))
        else:
            self.world.all_reduce(self.gradients)
        return terms

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
        norms = {
            name: nn.utils.clip_grad_norm_(module.parameters(), limit or float("inf"))
            for name, module in self.student.submodules().items()
        }
        values = {name: float(norm) for name, norm in norms.items()}
        bad = [name for name, norm in values.items() if not torch.tensor(norm).isfinite()]
        if bad:
            raise NonFinite(step, f"the gradient of {', '.join(bad)}", ())
        return values

    @torch.no_grad()
    def _update(self, values: StepValues) -> None:
        for group in self.optimizer.param_groups:
            factors = group["multipliers"]
            group["lr"] = factors.lr * (values.last_layer_lr if factors.last_layer else values.lr)
            group["weight_decay"] = factors.weight_decay * values.weight_decay
        self.optimizer.step()
        teacher: list[Tensor] = list(self.teacher.parameters())
        student: list[Tensor] = list(self.student.parameters())
        torch._foreach_mul_(teacher, values.momentum)
        torch._foreach_add_(teacher, student, alpha=1 - values.momentum)

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=enabled)


def _flat_gradients(module: nn.Module) -> Tensor:
    """One float32 buffer that all gradients are views of, so that one all-reduce sums them."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    flat = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
    start = 0
    for parameter in parameters:
        parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    return flat
