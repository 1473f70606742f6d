"""Gated attention over the patches of a slide: all seeds trained together, as one batched problem.

Ilse, Tomczak, Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018, eq. 9, with sizes,
projection and classifier as in kaiko-eva 0.4.5. Every parameter has a leading dimension of S runs, so a
step costs a few batched matrix products whatever S is.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from eosin.config.heads import AbmilConfig
from eosin.evaluation.heads.runs import (
    BatchedRuns,
    Parameters,
    balanced_accuracies,
    num_outputs,
    predictions_of,
    probabilities_of,
    run_seed,
)

_GIB = 1 << 30
_BYTES = 4
# Activations that a step keeps for its gradient, in units of what the attention layers compute.
_KEPT = 3


@dataclass(frozen=True)
class SlideBags:
    """Patches of slides: slide i has rows `starts[i]` to `starts[i + 1]` of `features` float32 [N, D]."""

    features: Tensor
    starts: Tensor

    @property
    def sizes(self) -> Tensor:
        """Patches of each slide, int64."""
        return self.starts[1:] - self.starts[:-1]

    def gather(self, slides: Tensor) -> tuple[Tensor, Tensor]:
        """Patches [..., n, D] of `slides` [...], filled up to the largest with rows that do not count;
        and which count, bool [..., n]."""
        sizes = self.sizes[slides]
        steps = torch.arange(int(sizes.max()))
        counts = steps < sizes.unsqueeze(-1)
        rows = torch.where(counts, self.starts[slides].unsqueeze(-1) + steps, 0)
        device = self.features.device
        return self.features[rows.to(device)], counts.to(device)


@dataclass(frozen=True)
class SlidePart:
    """The slides of one split, as numbers into the bags [n], and their classes [n]."""

    slides: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.slides)


@dataclass(frozen=True)
class TrainedAbmil:
    """Probabilities [S, n, C] on the judged slides by each run's best epoch; scores are on validation."""

    probabilities: Tensor
    best_epoch: tuple[int, ...]
    best_score: tuple[float, ...]
    num_epochs: int
    seeds_at_once: int


def train_abmil(
    bags: SlideBags,
    train: SlidePart,
    val: SlidePart,
    judged: SlidePart,
    num_classes: int,
    config: AbmilConfig,
    *,
    seed: int,
    draws: "AbmilDraws | None" = None,
) -> TrainedAbmil:
    """Train `config.num_runs` networks that differ in initialisation and order, and apply their best.

    As many at once as `config.max_step_gib` allows; how many makes no difference but for rounding. Each
    keeps its first best epoch by balanced accuracy on `val`, or its last where there is none. `draws` gives
    initial parameters and orders in the place of the seed's own.
    """
    at_once = seeds_at_once(bags, config)
    trainings = []
    for first in range(0, config.num_runs, at_once):
        seeds = [run_seed(seed, run) for run in range(first, min(first + at_once, config.num_runs))]
        trainings.append(_Training(bags, train, val, num_classes, config, seeds, draws))
        trainings[-1].run()
    return TrainedAbmil(
        torch.cat([each.apply(each.runs.best, judged) for each in trainings]),
        tuple(epoch for each in trainings for epoch in each.runs.best_epoch),
        tuple(score for each in trainings for score in each.runs.best_score),
        max(each.num_epochs for each in trainings),
        at_once,
    )


@dataclass(frozen=True)
class AbmilDraws:
    """Where one run begins, and its order of slides [n] in each epoch."""

    initial: Parameters
    orders: Tensor


def seeds_at_once(bags: SlideBags, config: AbmilConfig) -> int:
    """How many runs' steps fit in `config.max_step_gib` together, at least one."""
    width = bags.features.shape[1] + _KEPT * (config.projection_dim + 2 * config.attention_dim)
    per_run = config.batch_size * int(bags.sizes.max()) * width * _BYTES
    return max(1, min(config.num_runs, int(config.max_step_gib * _GIB / per_run)))


def initial_parameters(dim: int, num_classes: int, config: AbmilConfig, seeds: list[int]) -> Parameters:
    """Parameters [S, in, out] and [S, 1, out], drawn as torch.nn.Linear draws, each run by its own seed."""
    widths = [config.projection_dim, *config.hidden_dims, num_outputs(num_classes)]
    shapes = {
        "projection": (dim, config.projection_dim),
        "tanh": (config.projection_dim, config.attention_dim),
        "gate": (config.projection_dim, config.attention_dim),
        "attention": (config.attention_dim, 1),
        **{f"mlp{i}": (widths[i], widths[i + 1]) for i in range(len(widths) - 1)},
    }
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    parameters: Parameters = {}
    for name, (fan_in, fan_out) in shapes.items():
        bound = 1 / math.sqrt(fan_in)
        for suffix, rows in (("weight", fan_in), ("bias", 1)):
            drawn = [torch.rand(rows, fan_out, generator=generator) for generator in generators]
            parameters[f"{name}.{suffix}"] = torch.stack(drawn).mul_(2 * bound).sub_(bound)
    return parameters


def forward(parameters: Parameters, features: Tensor, counts: Tensor) -> Tensor:
    """Logits [S, B, outputs] of slides [S, B, n, D] whose patches `counts` [S, B, n] says are there.

    Features and counts with a leading 1 are shared by all runs.
    """
    num_runs, (_, num_slides, num_patches, dim) = len(parameters["projection.bias"]), features.shape
    projected = _linear(parameters, "projection", features.reshape(-1, num_slides * num_patches, dim))
    gated = _linear(parameters, "tanh", projected).tanh() * _linear(parameters, "gate", projected).sigmoid()
    scores = _linear(parameters, "attention", gated).view(num_runs, num_slides, num_patches)
    attention = scores.masked_fill(~counts, -math.inf).softmax(dim=-1)
    pooled = attention.unsqueeze(-2) @ projected.view(num_runs, num_slides, num_patches, -1)
    hidden = pooled.squeeze(-2)
    num_layers = sum(name.startswith("mlp") for name in parameters) // 2
    for i in range(num_layers):
        hidden = _linear(parameters, f"mlp{i}", hidden)
        hidden = hidden.relu() if i < num_layers - 1 else hidden
    return hidden


def _linear(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
    if len(x) == len(weight):
        return torch.baddbmm(bias, x, weight)
    # One product for all runs, and no copy of what they share.
    merged = x[0] @ weight.permute(1, 0, 2).reshape(weight.shape[1], -1)
    return merged.view(len(merged), len(weight), -1).transpose(0, 1) + bias


class _Training:
    """Some runs side by side: their parameters, optimizer, orders of slides, and best epochs."""

    def __init__(
        self, bags: SlideBags, train: SlidePart, val: SlidePart, num_classes: int, config: AbmilConfig,
        seeds: list[int], draws: AbmilDraws | None = None,
    ) -> None:  # fmt: skip
        self._bags, self._train, self._val, self._config = bags, train, val, config
        self._num_classes, self._device = num_classes, bags.features.device
        self._draws = draws
        drawn = (
            draws.initial if draws else initial_parameters(bags.features.shape[1], num_classes, config, seeds)
        )
        self.runs = BatchedRuns(drawn, config, device=self._device, has_validation=len(val) > 0)
        for each in self.runs.parameters.values():
            each.requires_grad_()
        # Apart from the initialisation's, so that the order does not depend on the network's size.
        self._generators = [torch.Generator().manual_seed(seed + 500_000) for seed in seeds]
        self.num_epochs = 0

    def run(self) -> None:
        while self.num_epochs < self._config.num_epochs and not self.runs.all_stopped:
            self.runs.begin_epoch(self.num_epochs)
            for places in self._epoch():
                self._step(places)
            self.runs.keep(self.num_epochs, self._scores())
            self.num_epochs += 1

    def _epoch(self) -> Iterator[Tensor]:
        """Batches of places in the training part, [S, b], each run in its own order."""
        if self._draws:
            order = self._draws.orders[self.num_epochs].unsqueeze(0)
        else:
            order = torch.stack([torch.randperm(len(self._train), generator=g) for g in self._generators])
        return iter(torch.split(order, self._config.batch_size, dim=1))

    def _step(self, places: Tensor) -> None:
        features, counts = self._bags.gather(self._train.slides[places])
        logits = forward(self.runs.parameters, features, counts)
        classes = self._train.classes[places].to(self._device)
        # The mean over slides of each run; summed, since runs share nothing.
        flat, targets = logits.flatten(0, 1), classes.flatten()
        if flat.shape[-1] == 1:
            loss = F.binary_cross_entropy_with_logits(flat.squeeze(-1), targets.float(), reduction="sum")
        else:
            loss = F.cross_entropy(flat, targets, reduction="sum")
        loss = loss / places.shape[1]
        self.runs.optimizer.zero_grad()
        loss.backward()
        self.runs.optimizer.step()

    def _scores(self) -> Tensor:
        """Balanced accuracy of each run on validation, [S]; 0 where there is none."""
        if not len(self._val):
            return torch.zeros_like(self.runs.score)
        predicted = predictions_of(self._logits(self.runs.parameters, self._val))
        return balanced_accuracies(predicted, self._val.classes.to(self._device), self._num_classes)

    def apply(self, parameters: Parameters, part: SlidePart) -> Tensor:
        """Probabilities [S, n, C] of the slides of `part`."""
        return probabilities_of(self._logits(parameters, part))

    @torch.no_grad()
    def _logits(self, parameters: Parameters, part: SlidePart) -> Tensor:
        """[S, n, outputs], a few slides at a time."""
        outputs = []
        for slides in torch.split(part.slides, self._config.batch_size):
            features, counts = self._bags.gather(slides.unsqueeze(0))
            outputs.append(forward(parameters, features, counts))
        return torch.cat(outputs, dim=1)
