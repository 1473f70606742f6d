"""Runs of one head that train together: their seeds, and the best validation epoch of each."""

from __future__ import annotations

import torch
from torch import Tensor


def run_seed(seed: int, run: int) -> int:
    """The seed of one of several runs: those of two configured seeds never meet."""
    return seed * 1_000_003 + run


def balanced_accuracies(predicted: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Of each run, [S], from its predictions [S, N]: mean recall over the classes that occur in [N]."""
    one_hot = torch.nn.functional.one_hot(classes, num_classes).float()
    support = one_hot.sum(dim=0)
    right = (predicted == classes).float()
    recall = (right @ one_hot)[:, support > 0] / support[support > 0]
    return recall.mean(dim=1) if recall.shape[1] else torch.zeros(len(right), device=right.device)


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
