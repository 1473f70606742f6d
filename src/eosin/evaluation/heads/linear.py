"""Linear probes on frozen embeddings: all seeds trained together, as one batched problem.

The protocol is eva's (kaiko-eva 0.4.5, offline patch classification): a linear layer on features as
they are, cross-entropy, AdamW, best validation epoch, several seeds. One run there is a training loop
of its own; here S runs are one [S, D, C] weight, and a step costs one batched matrix product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from eosin.config.heads import ProbeConfig
from eosin.evaluation.heads.runs import (
    BestEpochs,
    balanced_accuracies,
    lr_of_epoch,
    num_outputs,
    predictions_of,
    probabilities_of,
    run_seed,
)


@dataclass(frozen=True)
class Part:
    """Features float32 [N, D] and classes int64 [N], on one device."""

    features: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class Probes:
    """`weight` [S, D, outputs], `bias` [S, outputs] of each run at its best epoch; scores are on validation.

    Two classes have one output, the logit of the second.
    """

    weight: Tensor
    bias: Tensor
    best_epoch: tuple[int, ...]
    best_score: tuple[float, ...]
    num_epochs: int

    @torch.inference_mode()
    def probabilities(self, features: Tensor) -> Tensor:
        """[S, N, C] of `features` [N, D]."""
        return probabilities_of(features @ self.weight + self.bias.unsqueeze(1))


def train_probes(
    train: Part, val: Part, num_classes: int, config: ProbeConfig, *, seed: int, draws: Draws | None = None
) -> Probes:
    """Train `config.num_runs` probes that differ in initialisation and in the order of samples.

    With `config.num_shots` each run has its own draw of so many samples of every class in `train`.

    Each run keeps the weights of its first best epoch by balanced accuracy on `val`, and stops counting
    after `patience_epochs` without a better one. An epoch that the last step cuts short is not looked at,
    unless there was no other; without validation samples the last weights are kept. `draws` gives initial
    weights and orders of samples in the place of the seed's own.
    The same seed gives the same probes on the same kind of device. Raises ValueError where a class has
    fewer samples than shots.
    """
    runs = _Runs(train, num_classes, config, draws or _SeededDraws(train, config, seed))
    keep = _Best(runs, val, num_classes, config.patience_epochs)
    steps_per_epoch = math.ceil(runs.num_samples / config.batch_size)
    step = epoch = num_looks = 0
    while step < config.num_steps and not keep.all_stopped:
        runs.begin_epoch(epoch)
        batches = runs.epoch_batches()[: config.num_steps - step]
        for batch in batches:
            runs.step(batch)
        step += len(batches)
        is_whole = len(batches) == steps_per_epoch and (epoch + 1) % config.validate_every_epochs == 0
        if is_whole or (step == config.num_steps and (not num_looks or not len(val))):
            keep.update(epoch)
            num_looks += 1
        epoch += 1
    return keep.result(epoch)


class Draws(Protocol):
    """Where runs begin and in which order they see samples."""

    def initial(self, dim: int, num_outputs: int) -> tuple[Tensor, Tensor]:
        """Weight [S, dim, outputs] and bias [S, outputs]."""
        ...

    def epoch_order(self) -> Tensor:
        """Sample indices of the next epoch, [S, n]."""
        ...


class _SeededDraws:
    """As torch.nn.Linear begins, and in an order drawn anew an epoch, of each run by a seed of its own."""

    def __init__(self, train: Part, config: ProbeConfig, seed: int) -> None:
        self._generators = [
            torch.Generator().manual_seed(run_seed(seed, run)) for run in range(config.num_runs)
        ]
        self._subsets = [_draw_shots(train.classes, config.num_shots, g) for g in self._generators]

    def initial(self, dim: int, num_outputs: int) -> tuple[Tensor, Tensor]:
        bound = 1 / math.sqrt(dim)
        return self._draw((dim, num_outputs), bound), self._draw((num_outputs,), bound)

    def _draw(self, shape: tuple[int, ...], bound: float) -> Tensor:
        drawn = torch.stack([torch.rand(shape, generator=g) for g in self._generators])
        return drawn.mul_(2 * bound).sub_(bound)

    def epoch_order(self) -> Tensor:
        pairs = zip(self._subsets, self._generators, strict=True)
        return torch.stack([subset[torch.randperm(len(subset), generator=g)] for subset, g in pairs])

    @property
    def num_samples(self) -> int:
        return len(self._subsets[0])


class _Runs:
    """The weights of all runs, and their optimizer."""

    def __init__(self, train: Part, num_classes: int, config: ProbeConfig, draws: Draws) -> None:
        self._train, self._config, self._draws = train, config, draws
        device = train.features.device
        weight, bias = draws.initial(train.features.shape[1], num_outputs(num_classes))
        # Contiguous: the fused optimizer takes a gradient of other strides for one of the same.
        self.weight, self.bias = weight.to(device).contiguous(), bias.to(device).contiguous()
        self._optimizer = torch.optim.AdamW(
            [self.weight, self.bias], lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.num_samples = getattr(draws, "num_samples", len(train))

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch's learning rate."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr_of_epoch(self._config.lr, epoch, self._config.low_lr_epochs)

    def epoch_batches(self) -> list[Tensor]:
        """One epoch's batches of sample indices, each [S, b]; the last may be smaller."""
        order = self._draws.epoch_order()
        return list(torch.split(order.to(self.weight.device), self._config.batch_size, dim=1))

    @torch.no_grad()
    def step(self, batch: Tensor) -> None:
        """One AdamW step of every run on its own batch; the gradient of a linear layer in closed form."""
        features = self._train.features[batch]
        logits = torch.baddbmm(self.bias.unsqueeze(1), features, self.weight)
        classes = self._train.classes[batch].unsqueeze(-1)
        if logits.shape[-1] == 1:
            error = logits.sigmoid() - classes
        else:
            error = logits.softmax(dim=-1)
            error.scatter_add_(-1, classes, torch.full_like(classes, -1, dtype=error.dtype))
        error /= batch.shape[1]
        self.weight.grad = features.transpose(1, 2) @ error
        self.bias.grad = error.sum(dim=1)
        self._optimizer.step()


def _draw_shots(classes: Tensor, num_shots: int | None, generator: torch.Generator) -> Tensor:
    """Indices of the samples a run learns from, in sample order: all, or so many of each class."""
    classes = classes.cpu()
    if num_shots is None:
        return torch.arange(len(classes))
    drawn = []
    for each in torch.unique(classes).tolist():
        members = torch.nonzero(classes == each).flatten()
        if len(members) < num_shots:
            raise ValueError(f"a class has {len(members)} training sample(s), {num_shots} shots are wanted")
        drawn.append(members[torch.randperm(len(members), generator=generator)[:num_shots]])
    return torch.cat(drawn).sort().values


class _Best:
    """The weights of each run's best validation epoch so far."""

    def __init__(self, runs: _Runs, val: Part, num_classes: int, patience: int | None) -> None:
        self._runs, self._val, self._num_classes = runs, val, num_classes
        self._selection = BestEpochs(
            len(runs.weight), patience_epochs=patience, has_validation=len(val) > 0, device=runs.weight.device
        )
        self._weight, self._bias = runs.weight.clone(), runs.bias.clone()

    @property
    def all_stopped(self) -> bool:
        return self._selection.all_stopped

    @torch.inference_mode()
    def update(self, epoch: int) -> None:
        logits = self._val.features @ self._runs.weight + self._runs.bias.unsqueeze(1)
        score = balanced_accuracies(predictions_of(logits), self._val.classes, self._num_classes)
        better = self._selection.update(epoch, score)
        self._weight = torch.where(better.view(-1, 1, 1), self._runs.weight, self._weight)
        self._bias = torch.where(better.view(-1, 1), self._runs.bias, self._bias)

    def result(self, num_epochs: int) -> Probes:
        return Probes(
            self._weight,
            self._bias,
            tuple(self._selection.epoch.tolist()),
            tuple(self._selection.score.tolist()) if len(self._val) else (),
            num_epochs,
        )
