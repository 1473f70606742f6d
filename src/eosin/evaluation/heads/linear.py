"""Linear probes on frozen embeddings: all seeds trained together, as one batched problem.

The protocol is eva's (kaiko-eva 0.4.5, offline patch classification): a linear layer on features as
they are, cross-entropy, AdamW, best validation epoch, several seeds. One run there is a training loop
of its own; here S runs are one [S, D, C] weight, and a step costs one batched matrix product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eosin.config.heads import ProbeConfig
from eosin.evaluation.heads.runs import BestEpochs, balanced_accuracies, run_seed


@dataclass(frozen=True)
class Part:
    """Features float32 [N, D] and classes int64 [N], on one device."""

    features: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class Probes:
    """`weight` [S, D, C], `bias` [S, C] of each run at its best epoch; scores are on validation."""

    weight: Tensor
    bias: Tensor
    best_epoch: tuple[int, ...]
    best_score: tuple[float, ...]
    num_epochs: int

    @torch.inference_mode()
    def probabilities(self, features: Tensor) -> Tensor:
        """[S, N, C] of `features` [N, D]."""
        return (features @ self.weight + self.bias.unsqueeze(1)).softmax(dim=-1)


def train_probes(train: Part, val: Part, num_classes: int, config: ProbeConfig, *, seed: int) -> Probes:
    """Train `config.num_runs` probes that differ in initialisation and in the order of samples.

    With `config.num_shots` each run has its own draw of so many samples of every class in `train`.

    Each run keeps the weights of its first best epoch by balanced accuracy on `val`, and stops counting
    after `patience_epochs` without a better one; without validation samples the last weights are kept.
    The same seed gives the same probes on the same kind of device. Raises ValueError where a class has
    fewer samples than shots.
    """
    runs = _Runs(train, num_classes, config, seed)
    keep = _Best(runs, val, num_classes, config.patience_epochs)
    steps_per_epoch = math.ceil(runs.num_samples / config.batch_size)
    step = epoch = 0
    while step < config.num_steps and not keep.all_stopped:
        batches = runs.epoch_batches()[: config.num_steps - step]
        for batch in batches:
            runs.step(batch)
        step += len(batches)
        is_whole = len(batches) == steps_per_epoch and (epoch + 1) % config.validate_every_epochs == 0
        if is_whole or step == config.num_steps:
            keep.update(epoch)
        epoch += 1
    return keep.result(epoch)


class _Runs:
    """The weights of all runs, their optimizer, and each run's own order of samples."""

    def __init__(self, train: Part, num_classes: int, config: ProbeConfig, seed: int) -> None:
        self._train = train
        self._batch_size = config.batch_size
        self._generators = [
            torch.Generator().manual_seed(run_seed(seed, run)) for run in range(config.num_runs)
        ]
        self._subsets = [_draw_shots(train.classes, config.num_shots, g) for g in self._generators]
        dim, device = train.features.shape[1], train.features.device
        bound = 1 / math.sqrt(dim)  # torch.nn.Linear's own initialisation
        self.weight = self._draw((dim, num_classes), bound).to(device)
        self.bias = self._draw((num_classes,), bound).to(device)
        self._optimizer = torch.optim.AdamW(
            [self.weight, self.bias], lr=config.lr, weight_decay=config.weight_decay, fused=True
        )

    def _draw(self, shape: tuple[int, ...], bound: float) -> Tensor:
        return (
            torch.stack([torch.rand(shape, generator=g) for g in self._generators])
            .mul_(2 * bound)
            .sub_(bound)
        )

    @property
    def num_samples(self) -> int:
        """Samples a run learns from."""
        return len(self._subsets[0])

    def epoch_batches(self) -> list[Tensor]:
        """One epoch's batches of sample indices, each [S, b]; the last may be smaller."""
        pairs = zip(self._subsets, self._generators, strict=True)
        order = torch.stack([subset[torch.randperm(len(subset), generator=g)] for subset, g in pairs])
        return list(torch.split(order.to(self.weight.device), self._batch_size, dim=1))

    @torch.no_grad()
    def step(self, batch: Tensor) -> None:
        """One AdamW step of every run on its own batch; the gradient of a linear layer in closed form."""
        features = self._train.features[batch]
        error = torch.baddbmm(self.bias.unsqueeze(1), features, self.weight).softmax(dim=-1)
        classes = self._train.classes[batch].unsqueeze(-1)
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
        score = balanced_accuracies(logits.argmax(dim=-1), self._val.classes, self._num_classes)
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
