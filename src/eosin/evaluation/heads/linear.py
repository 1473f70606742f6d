"""Linear probes on frozen embeddings: all seeds trained together, as one batched problem.

The protocol is eva's (kaiko-eva 0.4.5, offline patch classification): a linear layer on features as
they are, cross-entropy, AdamW, best validation epoch, several seeds. One run there is a training loop
of its own; here S runs are one [S, D, C] weight, and a step costs one batched matrix product.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.config.heads import ProbeConfig
from eosin.evaluation.heads.runs import (
    BatchedRuns,
    balanced_accuracies,
    num_outputs,
    predictions_of,
    probabilities_of,
    run_seed,
)
from eosin.words import counted


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
    train: Part, val: Part, num_classes: int, config: ProbeConfig, *, seed: int, draws: "Draws | None" = None
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
    draws, device = draws or _SeededDraws(train, config, seed), train.features.device
    weight, bias = draws.initial(train.features.shape[1], num_outputs(num_classes))
    runs = BatchedRuns({"weight": weight, "bias": bias}, config, device=device, has_validation=len(val) > 0)
    step = epoch = num_looks = 0
    while step < config.num_steps and not runs.all_stopped:
        runs.begin_epoch(epoch)
        every = torch.split(draws.epoch_order().to(device), config.batch_size, dim=1)
        batches = every[: config.num_steps - step]
        for batch in batches:
            _step(runs, train, batch)
        step += len(batches)
        is_whole = len(batches) == len(every) and (epoch + 1) % config.validate_every_epochs == 0
        if is_whole or (step == config.num_steps and (not num_looks or not len(val))):
            runs.keep(epoch, _scores(runs, val, num_classes))
            num_looks += 1
        epoch += 1
    return Probes(runs.best["weight"], runs.best["bias"], runs.best_epoch, runs.best_score, epoch)


@torch.inference_mode()
def _scores(runs: BatchedRuns, val: Part, num_classes: int) -> Tensor:
    """Balanced accuracy of each run on validation, [S]."""
    logits = val.features @ runs.parameters["weight"] + runs.parameters["bias"].unsqueeze(1)
    return balanced_accuracies(predictions_of(logits), val.classes, num_classes)


@torch.no_grad()
def _step(runs: BatchedRuns, train: Part, batch: Tensor) -> None:
    """One AdamW step of every run on its own batch [S, b]; the gradient of a linear layer in closed form."""
    weight, bias = runs.parameters["weight"], runs.parameters["bias"]
    features, classes = train.features[batch], train.classes[batch].unsqueeze(-1)
    logits = torch.baddbmm(bias.unsqueeze(1), features, weight)
    if logits.shape[-1] == 1:
        error = logits.sigmoid() - classes
    else:
        error = logits.softmax(dim=-1)
        error.scatter_add_(-1, classes, torch.full_like(classes, -1, dtype=error.dtype))
    error /= batch.shape[1]
    weight.grad, bias.grad = features.transpose(1, 2) @ error, error.sum(dim=1)
    runs.optimizer.step()


def logistic_regression(
    features: npt.NDArray[np.floating],
    classes: npt.NDArray[np.int64],
    asked: npt.NDArray[np.floating],
    *,
    num_classes: int,
    cost: float,
) -> npt.NDArray[np.float64]:
    """Probabilities [M, C] for `asked` [M, D] by scikit-learn's logistic regression of [N, D], C = `cost`.

    Patho-Bench's linear probe: features as they are, lbfgs, at most 10,000 iterations. A class that is not
    learnt has 0.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=cost, max_iter=10_000).fit(features, classes)
    probabilities = np.zeros((len(asked), num_classes))
    probabilities[:, model.classes_] = model.predict_proba(asked)
    return probabilities


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


def _draw_shots(classes: Tensor, num_shots: int | None, generator: torch.Generator) -> Tensor:
    """Indices of the samples a run learns from, in sample order: all, or so many of each class."""
    classes = classes.cpu()
    if num_shots is None:
        return torch.arange(len(classes))
    drawn = []
    for each in torch.unique(classes).tolist():
        members = torch.nonzero(classes == each).flatten()
        if len(members) < num_shots:
            raise ValueError(
                f"a class has {counted(len(members), 'training sample')}, {num_shots} shots are wanted"
            )
        drawn.append(members[torch.randperm(len(members), generator=generator)[:num_shots]])
    return torch.cat(drawn).sort().values
