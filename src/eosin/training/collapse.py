"""Detection of collapse: figures of a rolling sample of teacher features, and their floors."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from eosin.config.train import CollapseConfig
from eosin.metrics.embeddings import rankme

Signals = dict[str, float]


class RollingSample:
    """The newest `size` rows of teacher features, kept on the device they were made on."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows: Tensor | None = None
        self._seen = 0

    def add(self, features: Tensor) -> None:
        """Put `features` [rows, dim] in place of the oldest rows."""
        newest = features[-self._size :].detach().float()
        if self._rows is None:
            self._rows = newest.new_zeros(self._size, newest.shape[1])
        places = (self._seen + torch.arange(len(newest), device=newest.device)) % self._size
        self._rows.index_copy_(0, places, newest)
        self._seen += len(newest)

    def rows(self) -> Tensor | None:
        """[size, dim] on the host; None until the sample is full, since figures depend on its size."""
        return None if self._rows is None or self._seen < self._size else self._rows.cpu()


def signals_of(rows: Tensor) -> Signals:
    """`rankme` of teacher features [N, dim] (uncentred; at most min(N, dim)), and `feature_center_norm`.

    The latter is the length of the mean of the L2-normalised features: 1 where all point the same way,
    about 1 / √N where they point everywhere. Both are left out where a feature is not finite or all are 0.
    """
    if not rows.isfinite().all() or not rows.any():
        return {}
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    return {"rankme": rankme(rows.numpy()), "feature_center_norm": float(unit.mean(0).norm())}


class CollapseWatch:
    """Compares signals with their floors, and says each crossing once."""

    def __init__(self, config: CollapseConfig, *, num_prototypes: int, first_step: int) -> None:
        """`first_step`: judge nothing before it; features of a random network are all alike too."""
        self._config = config
        self._max_entropy = math.log(num_prototypes)
        self._first_step = first_step
        self._below: dict[str, int] = {}

    def judge(self, step: int, signals: Mapping[str, float]) -> list[str]:
        """Sentences about the signals that have just crossed their floor."""
        if step < self._first_step:
            return []
        problems = self._problems(signals)
        judged = {name for name in ("teacher_entropy", "rankme", "feature_center_norm") if name in signals}
        for name in judged - problems.keys():
            self._below.pop(name, None)
        for name in problems:
            self._below[name] = self._below.get(name, 0) + 1
        return [text for name, text in problems.items() if self._below[name] == 1]

    def verdict(self, signals: Mapping[str, float]) -> str:
        """Why training should stop now; empty while it should not, or where stopping is not asked for."""
        if not self._config.stop:
            return ""
        problems = self._problems(signals)
        lasting = [
            text for name, text in problems.items() if self._below.get(name, 0) >= self._config.patience
        ]
        return "; ".join(lasting)

    def _problems(self, signals: Mapping[str, float]) -> dict[str, str]:
        config, problems = self._config, {}
        entropy, floor = signals.get("teacher_entropy"), config.min_entropy_share * self._max_entropy
        if entropy is not None and entropy < floor:
            problems["teacher_entropy"] = (
                f"the teacher puts nearly all patches on one prototype each (entropy {entropy:.3g}, floor"
                f" {floor:.3g} of at most {self._max_entropy:.3g} nats)"
            )
        rank = signals.get("rankme")
        if rank is not None and rank < config.min_rankme:
            problems["rankme"] = (
                f"teacher features hardly use {rank:.2f} dimensions (RankMe, floor {config.min_rankme:g})"
            )
        center = signals.get("feature_center_norm")
        if center is not None and center > config.max_center_norm:
            problems["feature_center_norm"] = (
                f"teacher features all point the same way (norm of their centre {center:.4f},"
                f" at most {config.max_center_norm:g})"
            )
        return problems
