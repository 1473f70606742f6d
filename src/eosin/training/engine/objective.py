"""The whole loss: the teacher's targets over all microbatches, then each one's share of the sum."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from eosin.config.train import TrainConfig
from eosin.models.backbone import Backbone, CropGroup
from eosin.models.frozen_teacher import FrozenTeacher, resample_grid
from eosin.models.network import Network, ProjectionHead
from eosin.training.engine.dense_health import dense_health
from eosin.training.engine.microbatch import Masked, Microbatch
from eosin.training.engine.parallel import let_go
from eosin.training.losses.cross_entropy import (
    PLAIN,
    Prototypes,
    SinkhornProblem,
    compiled_kernels,
    dino_terms,
    ibot_sum,
    sinkhorn_shifts,
)
from eosin.training.losses.patch_tokens import gram_distance, jepa_sum, jepa_targets, kernel_misalignment
from eosin.training.losses.uniformity import kde, koleo
from eosin.training.world import World

TERMS = ("dino_local", "dino_global", "ibot", "koleo", "kde", "gram", "paka", "jepa")


@dataclass
class Centers:
    """Running means of the teacher's logits [K], used by softmax centring only."""

    dino: Tensor
    ibot: Tensor | None


class TeacherViews(NamedTuple):
    """What the teacher makes of one microbatch."""

    tokens: Tensor
    """[2, n, d] bottleneck features of the global views."""
    patches: Tensor
    """[masked, d] of the patches that are compared."""
    dense: Tensor | None
    """[2 n, patches, d] of all patches behind the head of patch kernel alignment."""
    hidden: Tensor | None
    """float32 [masked, dim]: what I-JEPA's predictor is to say of the patches that are hidden."""
    health: Tensor | None
    """float32 [2], as `dense_health` gives it, of the first microbatch."""
    features: Tensor
    """[2, n, dim] class tokens before the head; the student's where it learns from a frozen teacher."""


class SpanningSets(NamedTuple):
    """Uniformity terms over sets that span microbatches, settled before the passes with gradients."""

    terms: Tensor
    """float32 [2]: KoLeo and KDE of the batch, weighted."""
    gradient: Tensor
    """float32 [2, batch, dim]: of their sum, by the student's class tokens of the global views."""


@dataclass(frozen=True)
class Targets:
    """The teacher's view of the batch: bottleneck features by microbatch and how to read them."""

    dino: Prototypes
    ibot: Prototypes
    views: dict[int, TeacherViews]
    spanning: SpanningSets | None = None
    gram: Backbone | None = None
    """The Gram teacher; None where it does not teach."""
    gram_weight: float = 0.0
    aligns: bool = False
    """Whether patch kernels are aligned in this step."""

    def is_finite(self, microbatch: int) -> Tensor:
        """Whether the teacher's features of a microbatch are: bool [], on their device."""
        views = self.views[microbatch]
        return views.tokens.isfinite().all() & views.patches.isfinite().all()


class Objective:
    """DINO or DINOv2 over a batch of `config.batch_size` patches in `config.num_microbatches` parts."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        self._config = config
        self._world = world
        self._kernels = compiled_kernels() if config.compile else PLAIN
        self._packs = config.pack == "on" if config.pack != "auto" else _packing_gains(config, world.device)

    def new_centers(self, network: Network) -> Centers:
        """Zero, as before the first step, on this rank's device."""

        def zeros(head: ProjectionHead) -> Tensor:
            return torch.zeros(head.last_layer.weight_v.shape[0], device=self._world.device)

        ibot = zeros(network.patch_head) if self._config.uses_ibot else None
        return Centers(zeros(network.dino_head), ibot)

    @torch.no_grad()
    def targets(
        self,
        teacher: Network,
        microbatches: Mapping[int, Microbatch],
        centers: Centers,
        temperature: float,
        surplus: Mapping[int, Microbatch] | None = None,
        frozen: FrozenTeacher | None = None,
    ) -> Targets:
        """Run the teacher over this rank's microbatches and settle the global statistics of its logits.

        With `frozen`, its tokens go through the heads of `teacher`, whose backbone is left alone.
        Softmax centring uses the centres of the steps before and then moves `centers`, in place.
        `surplus`: passes that no statistic counts, for ranks that must run the teacher equally often.
        """
        uses_ibot = centers.ibot is not None
        passes = {**microbatches, **(surplus or {})}
        views = {
            microbatch: self._teacher_views(teacher, microbatch, passes[microbatch], frozen)
            for microbatch in passes
        }
        dino = SinkhornProblem(
            {microbatch: views[microbatch].tokens.flatten(0, 1) for microbatch in microbatches},
            Prototypes(teacher.dino_head.last_layer.weight(), temperature),
        )
        ibot = SinkhornProblem(
            {microbatch: views[microbatch].patches for microbatch in microbatches},
            Prototypes(teacher.patch_head.last_layer.weight(), temperature),
        )
        problems, means = [dino, ibot][: 1 + uses_ibot], [centers.dino, centers.ibot]
        shifts = self._shifts(problems, [center for center in means if center is not None])
        settled = [
            replace(problem.prototypes, shift=shift) for problem, shift in zip(problems, shifts, strict=True)
        ]
        return Targets(settled[0], settled[-1] if uses_ibot else ibot.prototypes, views)

    def _teacher_views(
        self, teacher: Network, index: int, microbatch: Microbatch, frozen: FrozenTeacher | None
    ) -> TeacherViews:
        size, masked = microbatch.global_crops.shape[:2], microbatch.masked
        crops = microbatch.global_crops.flatten(0, 1)
        tokens = teacher.backbone(crops) if frozen is None else frozen(crops)
        num_prefix_tokens = teacher.backbone.num_prefix_tokens if frozen is None else 1
        classes, dense = tokens[:, 0], tokens[:, num_prefix_tokens:]
        views = teacher.dino_head(classes).view(*size, -1)
        hidden = None if masked is None else _masked_tokens(tokens, num_prefix_tokens, masked)
        ibot = hidden is not None and self._config.uses_ibot
        return TeacherViews(
            views,
            teacher.patch_head(hidden) if ibot else views.new_zeros(0, views.shape[-1]),
            None if teacher.paka_head is None else teacher.paka_head(dense),
            jepa_targets(hidden) if hidden is not None and self._config.uses_jepa else None,
            dense_health(classes, dense) if index == 0 and frozen is None else None,
            classes.view(*size, -1),
        )

    def microbatch_terms(
        self, student: Network, index: int, microbatch: Microbatch, targets: Targets
    ) -> Tensor:
        """This microbatch's share of every term in `TERMS` and of the teacher's entropy, float32 [9].

        Shares add up over the microbatches of all ranks to the batch's loss, weights and means included.
        """
        config = self._config
        tokens, local = _student_tokens(student, microbatch, pack=self._packs)
        views = tokens[:, 0].view(*microbatch.global_crops.shape[:2], -1)
        features = student.dino_head(student.for_heads(torch.cat([views.flatten(0, 1), local.flatten(0, 1)])))
        num_global = views.shape[0] * views.shape[1]
        dino = dino_terms(
            features[:num_global].unflatten(0, views.shape[:2]),
            features[num_global:].unflatten(0, local.shape[:2]),
            targets.views[index].tokens,
            Prototypes(student.dino_head.last_layer.weight(), config.dino.student_temperature),
            targets.dino,
            self._kernels,
        )
        num_pairs = 2 + self._num_local_pairs(local.shape[0])
        local_pairs, crossed = (dino[:2] / (num_pairs * config.batch_size)).unbind()
        entropy = dino[2] / (2 * config.batch_size)
        ibot = self._ibot(student, index, tokens, microbatch, targets)
        patches = tokens[:, student.backbone.num_prefix_tokens :]
        if config.distill is not None:  # what is trained is watched, not what never changes
            health = dense_health(tokens[:, 0], patches) if index == 0 else None
            targets.views[index] = targets.views[index]._replace(features=views.detach(), health=health)
        uniformity = self._uniformity(index, views, targets.spanning)
        dense = self._dense_terms(student, patches, microbatch, targets.views[index], targets)
        return torch.stack([local_pairs, crossed, ibot, *uniformity, *dense, entropy])

    def _dense_terms(
        self, student: Network, patches: Tensor, microbatch: Microbatch, views: TeacherViews, targets: Targets
    ) -> list[Tensor]:
        """This microbatch's share of the terms on dense features; the student's `patches` [2 n, N, dim]."""
        config, terms = self._config, [patches.new_zeros((), dtype=torch.float32)] * 3
        if targets.gram is not None and microbatch.clean_crops is not None:
            with torch.no_grad():
                seen = targets.gram(microbatch.clean_crops.flatten(0, 1))
            theirs = seen[:, targets.gram.num_prefix_tokens :]
            theirs = resample_grid(theirs, math.isqrt(patches.shape[1]), antialias=False)
            terms[0] = targets.gram_weight * gram_distance(patches, theirs)
        if student.paka_head is not None and views.dense is not None:
            ours = student.paka_head(student.for_heads(patches))
            terms[1] = config.paka.weight * targets.aligns * kernel_misalignment(ours, views.dense)
        if student.predictor is not None and microbatch.masked is not None and views.hidden is not None:
            predicted = student.predictor(patches).flatten(0, 1).index_select(0, microbatch.masked.places)
            terms[2] = config.jepa.weight * jepa_sum(predicted, views.hidden, microbatch.masked.weights)
        return [term / (2 * config.batch_size) for term in terms]

    def spanning_sets(self, student: Network, microbatches: Mapping[int, Microbatch]) -> SpanningSets | None:
        """Settle uniformity terms where a microbatch is no whole number of sets; None where all are.

        Costs a forward pass over the global crops of `microbatches` (this rank's own; a negative index: one
        that no statistic counts), since a set's gradient needs the features of all of it. A collective.
        """
        config = self._config
        if not any(config.microbatch_size % size for size in config.uniformity_sets().values()):
            return None
        shape = (2, config.batch_size, student.backbone.num_features)
        features = torch.zeros(shape, device=self._world.device)
        with torch.no_grad():
            for index, microbatch in microbatches.items():
                tokens = student.backbone([_global_crops(microbatch, wanted=1)])[0]
                if index >= 0:
                    features[:, self._rows_of(index)] = tokens[:, 0].view(2, -1, shape[2]).float()
        let_go(student)
        # Each row is of one rank and 0 on the others: exact in any order.
        features = self._world.all_reduce(features).requires_grad_()
        with torch.enable_grad():
            terms = torch.stack(self._uniformity_of(features))
            (gradient,) = torch.autograd.grad(terms.sum(), features)
        return SpanningSets(terms.detach(), gradient)

    def _rows_of(self, microbatch: int) -> slice:
        size = self._config.microbatch_size
        return slice(microbatch * size, (microbatch + 1) * size)

    def _uniformity(self, index: int, views: Tensor, spanning: SpanningSets | None) -> list[Tensor]:
        """This microbatch's share of KoLeo and of KDE; `views` [2, n, dim]."""
        if spanning is None:
            return [term / self._config.num_microbatches for term in self._uniformity_of(views)]
        koleo_share, kde_share = (spanning.terms / self._config.num_microbatches).unbind()
        # 0, with the gradient of the terms by this microbatch's features.
        moves = (views.float() * spanning.gradient[:, self._rows_of(max(index, 0))]).sum()
        return [koleo_share + moves - moves.detach(), kde_share]

    def _uniformity_of(self, views: Tensor) -> list[Tensor]:
        """KoLeo and KDE of both views [2, n, dim], each a mean over sets, weighted."""
        config, sets = self._config, self._config.uniformity_sets()
        found = [views.new_zeros((), dtype=torch.float32)] * 2
        if "koleo" in sets:
            found[0] = 2 * config.koleo.weight * koleo(views.unflatten(1, (-1, sets["koleo"])))
        if "kde" in sets:
            split = views.unflatten(1, (-1, sets["kde"]))
            found[1] = 2 * config.kde.weight * kde(split, config.kde.concentration)
        return found

    def _num_local_pairs(self, num_local: int) -> int:
        """What the sum over local crops is divided by; DINOv2's code counts one where there are none."""
        return 2 * num_local if num_local or self._config.method == "dino" else 1

    def _ibot(
        self, student: Network, index: int, tokens: Tensor, microbatch: Microbatch, targets: Targets
    ) -> Tensor:
        if microbatch.masked is None or not self._config.uses_ibot:
            return tokens.new_zeros((), dtype=torch.float32)
        hidden = _masked_tokens(tokens, student.backbone.num_prefix_tokens, microbatch.masked)
        prototypes = Prototypes(student.patch_head.last_layer.weight(), self._config.dino.student_temperature)
        total = ibot_sum(
            student.patch_head(student.for_heads(hidden)),
            targets.views[index].patches,
            microbatch.masked.weights,
            prototypes,
            targets.ibot,
            self._kernels,
        )
        # Divided by all global crops, the unmasked included, as the reference does.
        return self._config.ibot.weight * total / (2 * self._config.batch_size)

    def _shifts(self, problems: Sequence[SinkhornProblem], centers: Sequence[Tensor]) -> list[Tensor]:
        """Each problem's shift [K]; softmax centring then moves the centres."""
        if self._config.centering == "sinkhorn":
            return sinkhorn_shifts(problems, self._world, kernels=self._kernels)
        shifts = []
        for problem, center in zip(problems, centers, strict=True):
            shifts.append(-center / problem.prototypes.temperature)
            self._move_center(center, problem.prototypes, problem.features)
        return shifts

    def _move_center(self, center: Tensor, prototypes: Prototypes, features: Mapping[int, Tensor]) -> None:
        ones = torch.ones(1, device=center.device)
        sums = {
            microbatch: torch.cat([prototypes.summed_logits(rows), ones * rows.shape[0]])
            for microbatch, rows in features.items()
        }
        total = self._world.sum_over_microbatches(sums, torch.cat([center, ones]))
        momentum = self._config.dino.center_momentum
        center.mul_(momentum).add_(total[:-1] / total[-1].clamp(min=1), alpha=1 - momentum)


def _packing_gains(config: TrainConfig, device: torch.device) -> bool:
    """On a GPU, and where every pass gathers the blocks; the same for any strategy in deterministic mode."""
    return device.type != "cpu" or config.parallel == "fsdp" or config.deterministic


def _masked_tokens(tokens: Tensor, num_prefix_tokens: int, masked: Masked) -> Tensor:
    """[masked, dim] of `tokens` [crops, tokens, dim]."""
    places = masked.places + (masked.crops + 1) * num_prefix_tokens
    return tokens.flatten(0, 1).index_select(0, places)


def _global_crops(microbatch: Microbatch, wanted: int | None = None) -> CropGroup:
    return CropGroup(microbatch.global_crops.flatten(0, 1), microbatch.masks, microbatch.global_drop, wanted)


def _student_tokens(student: Network, microbatch: Microbatch, *, pack: bool) -> tuple[Tensor, Tensor]:
    """All tokens [2 n, tokens, dim] of the global crops, class tokens [num_local, n, dim] of the local."""
    num_local, n = microbatch.local_crops.shape[:2]
    groups = [_global_crops(microbatch)]
    if num_local:
        groups.append(CropGroup(microbatch.local_crops.flatten(0, 1), drop=microbatch.local_drop, wanted=1))
    passes = [groups] if pack else [[crops] for crops in groups]
    tokens = [part for crops in passes for part in student.backbone(crops)]
    local = tokens[1][:, 0] if num_local else tokens[0].new_zeros(0, tokens[0].shape[-1])
    return tokens[0], local.view(num_local, n, tokens[0].shape[-1])
