"""Runs of one head that train together: their seeds, and the best validation epoch of each."""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 1.0 / 3


def run_seed(seed: int, run: int) -> int:
    """The seed of one of several runs: those of two configured seeds never meet."""
    return seed * 1_000_003 + run


def lr_of_epoch(lr: float, epoch: int, low_epochs: int) -> float:
    """A third of `lr` for the first epochs, then `lr`, with the rounding of torch's ConstantLR."""
    low = lr * _LOW if low_epochs else lr
    return low if epoch < low_epochs else low * (1.0 / _LOW) if low_epochs else lr


def num_outputs(num_classes: int) -> int:
    """One logit for two classes, of the second; else one a class."""
    return 1 if num_classes == 2 else num_classes


def probabilities_of(logits: Tensor) -> Tensor:
    """[..., C] of logits [..., outputs]; of one logit both classes' probabilities."""
    if logits.shape[-1] > 1:
        return logits.softmax(dim=-1)
    second = logits.sigmoid()
    return torch.cat([1 - second, second], dim=-1)


def predictions_of(logits: Tensor) -> Tensor:
    """The likeliest class, int64 [...], of logits [..., outputs]."""
    return logits.argmax(dim=-1) if logits.shape[-1] > 1 else (logits.squeeze(-1) > 0).long()


def balanced_accuracies(predicted: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Of each run, [S], from its predictions [S, N]: mean recall over the classes that occur in [N]."""
    one_hot = torch.nn.functional.one_hot(classes, num_classes).float()
    support = one_hot.sum(dim=0)
    right = (predicted == classes).float()
    recall = (right @ one_hot)[:, support > 0] / support[support > 0]
    # Divided before it is summed, as torchmetrics does: ties between epochs then fall as they do in eva.
    return (recall / max(1, recall.shape[1])).sum(dim=1)


class BestEpochs:
    """Each run's first best epoch so far, and whether its patience is at an end.

    Without validation (`has_validation` false) every epoch is the best so far.
    """

    def __init__(
        self, num_runs: int, *, patience_epochs: int | None, has_validation: bool, device: torch.device
    ) -> None:
        self._patience, self._has_validation = patience_epochs, has_validation
        self.score = torch.full((num_runs,), -1.0, device=device)
        self.epoch = torch.zeros(num_runs, dtype=torch.int64, device=device)
        self._stopped = torch.zeros(num_runs, dtype=torch.bool, device=device)

    @property
    def all_stopped(self) -> bool:
        """Whether the patience of every run is spent."""
        return self._patience is not None and bool(self._stopped.all())

    def update(self, epoch: int, score: Tensor) -> Tensor:
        """Which runs are better than ever before, bool [S]; a run that has stopped never is."""
        better = ((score > self.score) | (not self._has_validation)) & ~self._stopped
        self.score = torch.where(better, score, self.score)
        self.epoch = torch.where(better, epoch, self.epoch)
        if self._patience is not None:
            self._stopped |= epoch - self.epoch >= self._patience
        return better
