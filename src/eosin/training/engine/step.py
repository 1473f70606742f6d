"""One training step, the same whatever the number of ranks that share it."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from eosin.config import RunConfig
from eosin.models.backbone import Backbone
from eosin.models.frozen_teacher import FrozenTeacher
from eosin.models.network import HEADS, Network, speed_up, teacher_of
from eosin.training.engine.microbatch import Microbatch, blank_microbatch
from eosin.training.engine.objective import TERMS, Objective, Targets
from eosin.training.engine.optimizer import Schedules, StepValues, apply_values, build_optimizer
from eosin.training.engine.parallel import clip_, clip_each_, local, parallelize
from eosin.training.world import World


class NonFinite(ArithmeticError):
    """The loss or a gradient is not finite; nothing was updated. `microbatches`: where, empty if unknown."""

    def __init__(self, step: int, what: str, microbatches: tuple[int, ...]) -> None:
        super().__init__(f"step {step}: {what} is not finite")
        self.step = step
        self.what = what
        self.microbatches = microbatches


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
    dense_health: Tensor | None = None
    """As `dense_health` gives it, of the first microbatch, on the rank that has it."""
    center_norm: float | None = None
    """Length of the mean teacher logits, where softmax centring keeps it."""
    wants_snapshot: bool = False
    """Whether some rank must have a snapshot of the state after this step."""


class Numbers:
    """A few numbers on their way from a device, with nothing waiting for them yet."""

    def __init__(self, values: Tensor) -> None:
        # Pinned, since a copy to any other memory is waited for.
        self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
        self._values.copy_(values.detach(), non_blocking=True)
        self._arrived = torch.cuda.Event() if values.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def arrived(self) -> bool:
        """Whether `wait` would return at once."""
        return self._arrived is None or bool(self._arrived.query())

    def wait(self) -> list[float]:
        """The numbers, once they are on the host."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [float(value) for value in self._values]


class Launched(NamedTuple):
    """A step whose gradients are on their way; see `Learner.launch`."""

    step: int
    values: StepValues
    norms: dict[str, Tensor]
    numbers: Numbers
    """The terms, flags of what is not finite, whether a snapshot is wanted, the norms, and the centre's where
    one is kept."""
    features: Tensor | None
    health: Tensor | None


class Learner:
    """Student, teacher, optimizer and loss state on this rank, whole or in shards."""

    def __init__(
        self,
        config: RunConfig,
        student: Network,
        world: World,
        teacher: Network | None = None,
        frozen: FrozenTeacher | None = None,
    ) -> None:
        """`teacher`: the moving average to begin with; None: a copy of `student`. `frozen`: to distil."""
        self.world = world
        self.config = config.train
        self.student = student.train()
        self.student.backbone.mask_token.requires_grad_(config.train.uses_ibot or config.train.uses_jepa)
        self.teacher = teacher_of(self.student if teacher is None else teacher)
        self._blank = blank_microbatch(config, student.backbone.patch_size, world.device)
        self.frozen = frozen
        self.gram = copy.deepcopy(self.teacher.backbone) if config.train.gram.weight > 0 else None
        fixed = [each for each in (frozen, self.gram) if each is not None]
        self.strategy = parallelize(self.student, self.teacher, config.train, world, *fixed)
        for network in (self.student, self.teacher):
            speed_up(network, config.train)
        self.objective = Objective(config.train, world)
        self.centers = self.objective.new_centers(self.student)
        self.schedules = Schedules(config.train)
        self.optimizer = build_optimizer(self.student, config.train)

    def step(
        self, step: int, microbatches: Mapping[int, Microbatch], *, wants_snapshot: bool = False
    ) -> StepResult:
        """Take step `step` (from 0) on this rank's `microbatches`.

        Raises `NonFinite`, on every rank alike and before anything has moved but the centres, where the
        loss or its gradient is not finite.
        """
        return self.settle(self.launch(step, microbatches, wants_snapshot=wants_snapshot))

    def launch(
        self, step: int, microbatches: Mapping[int, Microbatch], *, wants_snapshot: bool = False
    ) -> Launched:
        """Compute the gradients of step `step`. On a GPU they are only asked for: nothing here waits.

        So the next batch can be made ready while the device works; `settle` ends the step.
        `wants_snapshot`: tell all ranks that this one must have a snapshot after the step.
        """
        values = self.schedules.at(step)
        gram = self._gram_teacher(step)
        surplus = dict.fromkeys(self._surplus(len(microbatches)), self._blank)
        with self._autocast():
            targets = self.objective.targets(
                self.teacher, microbatches, self.centers, values.teacher_temperature, surplus, self.frozen
            )
            spanning = self.objective.spanning_sets(self.student, {**microbatches, **surplus})
            paka = self.config.paka.weight > 0 and step >= self.config.paka.start_step
            gram_weight = self.config.gram.weight_at(step)
            targets = replace(targets, spanning=spanning, gram=gram, gram_weight=gram_weight, aligns=paka)
        terms = self._share_terms(self._accumulate(microbatches, targets), targets, wants_snapshot)
        norms = self.strategy.gradient_norms()
        features = [targets.views[microbatch].features[0] for microbatch in microbatches]
        numbers = torch.cat([terms, torch.stack(list(norms.values())), self._center_norm()])
        return Launched(
            step, values, norms, Numbers(numbers), torch.cat(features) if features else None,
            targets.views[0].health if 0 in microbatches else None,
        )  # fmt: skip

    @torch.no_grad()
    def _gram_teacher(self, step: int) -> Backbone | None:
        """The Gram teacher of step `step`, made a copy of the teacher where that is due; None before its
        first."""
        if self.gram is None or step < self.config.gram.start_step:
            return None
        if self.config.gram.is_refresh(step):
            pairs = zip(self.gram.parameters(), self.teacher.backbone.parameters(), strict=True)
            for own, theirs in pairs:
                local(own).copy_(local(theirs))
        return self.gram

    def settle(self, launched: Launched) -> StepResult:
        """Wait for the gradients, judge them and move the parameters; raises as `step` does."""
        numbers = launched.numbers.wait()
        terms = _sound_terms(launched.step, numbers, self.world.num_microbatches)
        norms = dict(zip(launched.norms, numbers[_num_shared(self.world.num_microbatches) :], strict=False))
        self._clip(launched, norms)
        apply_values(self.optimizer, launched.values)
        self.optimizer.step()
        self._move_teacher(launched.values.momentum)
        *parts, entropy = terms
        return StepResult(
            sum(parts), dict(zip(TERMS, parts, strict=True)), entropy, norms, launched.values,
            launched.features, launched.health,
            None if self.config.centering == "sinkhorn" else numbers[-1],
            wants_snapshot=numbers[_num_shared(self.world.num_microbatches) - 1] > 0,
        )  # fmt: skip

    def _center_norm(self) -> Tensor:
        """Float32 [1], or [0] where no centre is kept."""
        if self.config.centering == "sinkhorn":
            return torch.zeros(0, device=self.world.device)
        norm: Tensor = torch.linalg.vector_norm(self.centers.dino, keepdim=True)
        return norm

    def _surplus(self, num_microbatches: int) -> range:
        """Indices of the teacher's passes that only keep this rank in step with the others."""
        return range(-1, num_microbatches - self.strategy.num_teacher_passes() - 1, -1)

    def _accumulate(self, microbatches: Mapping[int, Microbatch], targets: Targets) -> dict[int, Tensor]:
        """Gradients of all microbatches of all ranks, summed; this rank's terms by microbatch."""
        terms: dict[int, Tensor] = {}
        self.strategy.begin()
        for index in self.strategy.passes():
            if index is None:
                self._pass_of_zero_weight(microbatches, targets)
            else:
                with self._autocast():
                    share = self.objective.microbatch_terms(self.student, index, microbatches[index], targets)
                share[: len(TERMS)].sum().backward()
                terms[index] = share.detach()
            self.strategy.end_pass(index)
        self.strategy.finish()
        return terms

    def _pass_of_zero_weight(self, microbatches: Mapping[int, Microbatch], targets: Targets) -> None:
        """Run the student with the others, on a microbatch of its own again, and add nothing."""
        index = max(microbatches, default=-1)
        microbatch = microbatches.get(index, self._blank)
        with self._autocast():
            share = self.objective.microbatch_terms(self.student, index, microbatch, targets)
        (share[: len(TERMS)].sum() * 0.0).backward()

    def _share_terms(self, terms: Mapping[int, Tensor], targets: Targets, wants_snapshot: bool) -> Tensor:
        """Σ over microbatches of the terms and the entropy, flags [2 × microbatches] of those that are not
        finite, and how many are of ranks that want a snapshot [1].

        First those whose teacher features are not: one spoils every microbatch's targets.
        """
        num_microbatches = self.world.num_microbatches
        rows = {}
        for microbatch, share in terms.items():
            culprits = torch.zeros(2, num_microbatches, device=share.device)
            culprits[0, microbatch] = ~targets.is_finite(microbatch)
            culprits[1, microbatch] = ~share.isfinite().all()
            wants = share.new_full((1,), float(wants_snapshot))
            rows[microbatch] = torch.cat(
                [share.nan_to_num(posinf=0.0, neginf=0.0), culprits.flatten(), wants]
            )
        return self.world.sum_over_microbatches(
            rows, torch.zeros(_num_shared(num_microbatches), device=self.world.device)
        )

    def _clip(self, launched: Launched, norms: Mapping[str, float]) -> None:
        bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
        if bad:
            raise NonFinite(launched.step, f"the gradient of {', '.join(bad)}", ())
        limit = self.config.optimizer.clip_grad_norm
        if limit is None:
            return
        if self.config.optimizer.clip_by == "parameter":
            clip_each_(self.student, self.strategy.parameter_norms(), limit)
            return
        for name, module in self.student.submodules().items():
            clip_(module, launched.norms[name], limit)

    @torch.no_grad()
    def _move_teacher(self, momentum: float) -> None:
        moving = [
            (local(average), local(parameter))
            for (name, average), parameter in zip(
                self.teacher.named_parameters(), self.student.parameters(), strict=True
            )
            if not (name.startswith(HEADS) and self.config.keeps_teacher_heads)
        ]
        torch._foreach_lerp_([own for own, _ in moving], [theirs for _, theirs in moving], 1 - momentum)

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=enabled)


def _num_shared(num_microbatches: int) -> int:
    """Numbers that ranks share about a step: terms with the entropy, two flags a microbatch, and whether a
    snapshot is wanted."""
    return len(TERMS) + 1 + 2 * num_microbatches + 1


def _sound_terms(step: int, numbers: Sequence[float], num_microbatches: int) -> list[float]:
    """The terms and the entropy; raises `NonFinite` naming the microbatches that are not finite."""
    start = len(TERMS) + 1
    for flags in (
        numbers[start : start + num_microbatches],
        numbers[start + num_microbatches : start + 2 * num_microbatches],
    ):
        if any(flags):
            raise NonFinite(
                step, "the loss", tuple(microbatch for microbatch, flag in enumerate(flags) if flag)
            )
    return list(numbers[:start])
