"""Runs of one head that train together: their seeds, and the best validation epoch of each."""

import torch
from torch import Tensor

from eosin.config.heads import AbmilConfig, ProbeConfig

Parameters = dict[str, Tensor]
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


class BatchedRuns:
    """Runs side by side: each parameter [S, …], one optimizer, and the best epoch of each run so far.

    Without validation (`has_validation` false) every epoch is the best so far.
    """

    def __init__(
        self,
        initial: Parameters,
        config: ProbeConfig | AbmilConfig,
        *,
        device: torch.device,
        has_validation: bool,
    ) -> None:
        # Contiguous: the fused optimizer takes a gradient of other strides for one of the same.
        self.parameters = {name: each.to(device).contiguous() for name, each in initial.items()}
        self.best = {name: each.clone() for name, each in self.parameters.items()}
        self._config, self._has_validation = config, has_validation
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        num_runs = len(next(iter(self.parameters.values())))
        self.score = torch.full((num_runs,), -1.0, device=device)
        self.epoch = torch.zeros(num_runs, dtype=torch.int64, device=device)
        self._stopped = torch.zeros(num_runs, dtype=torch.bool, device=device)

    @property
    def all_stopped(self) -> bool:
        """Whether the patience of every run is spent."""
        return self._config.patience_epochs is not None and bool(self._stopped.all())

    @property
    def best_epoch(self) -> tuple[int, ...]:
        """Of each run, from 0 on."""
        return tuple(self.epoch.tolist())

    @property
    def best_score(self) -> tuple[float, ...]:
        """Of each run on validation; empty without."""
        return tuple(self.score.tolist()) if self._has_validation else ()

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch's learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr_of_epoch(self._config.lr, epoch, self._config.low_lr_epochs)

    @torch.no_grad()
    def keep(self, epoch: int, score: Tensor) -> None:
        """Keep the weights of the runs whose `score` [S] is better than ever; a stopped run's never is."""
        better = ((score > self.score) | (not self._has_validation)) & ~self._stopped
        self.score = torch.where(better, score, self.score)
        self.epoch = torch.where(better, epoch, self.epoch)
        if self._config.patience_epochs is not None:
            self._stopped |= epoch - self.epoch >= self._config.patience_epochs
        self.best = {
            name: torch.where(better.view(-1, *[1] * (each.ndim - 1)), each, self.best[name])
            for name, each in self.parameters.items()
        }
