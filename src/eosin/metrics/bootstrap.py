"""Confidence intervals by resampling patients, not patches: patches of one patient are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eosin.metrics.matrix import Matrix

NUM_RESAMPLES = 1000
_BLOCK = 100


@dataclass(frozen=True)
class Interval:
    """Percentile interval at 95 %. `num_groups`: the patients (or samples) that were resampled."""

    low: float
    high: float
    num_groups: int


@dataclass(frozen=True)
class PairedDifference:
    """Of balanced accuracy, second minus first; `p_value` two-sided, that the two are equal."""

    difference: float
    low: float
    high: float
    p_value: float


def balanced_accuracy_interval(
    truth: npt.ArrayLike, predicted: npt.ArrayLike, *, groups: Sequence[str] | None = None, seed: int = 0
) -> Interval:
    """95 % bootstrap interval of balanced accuracy over `groups` (None: each sample its own group).

    A resample in which a class does not occur averages over the others. Efron & Tibshirani 1993, §13.3.
    """
    correct, total = _by_group(truth, [predicted], groups)
    low, high = np.percentile(_resample(correct, total, seed)[0], [2.5, 97.5])
    return Interval(float(low), float(high), len(total))


def paired_difference(
    truth: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> PairedDifference:
    """Is `second` better than `first` on the same samples? Both are judged on the same resamples."""
    correct, total = _by_group(truth, [first, second], groups)
    scores = _resample(correct, total, seed)
    differences = scores[1] - scores[0]
    whole = np.ones((1, len(total)))
    observed = float((_balanced(whole, correct[1], total) - _balanced(whole, correct[0], total))[0])
    low, high = np.percentile(differences, [2.5, 97.5])
    # Shifted to the null of no difference; the observed sample counts as one draw, so p is never 0.
    extreme = int((np.abs(differences - differences.mean()) >= abs(observed) - 1e-12).sum())
    return PairedDifference(observed, float(low), float(high), (extreme + 1) / (len(differences) + 1))


def _by_group(
    truth: npt.ArrayLike, predictions: Sequence[npt.ArrayLike], groups: Sequence[str] | None
) -> tuple[list[Matrix], Matrix]:
    """For each prediction the right answers, and once the samples, counted by [group, class]."""
    true = np.asarray(truth, dtype=np.int64)
    names: Sequence[object] = range(len(true)) if groups is None else groups
    if len(names) != len(true) or not len(true):
        raise ValueError(f"{len(names)} groups for {len(true)} samples")
    _, group = np.unique(np.asarray(names), return_inverse=True)
    shape = (int(group.max()) + 1, int(true.max()) + 1)
    total = np.zeros(shape)
    np.add.at(total, (group, true), 1.0)
    correct = []
    for predicted in predictions:
        counts = np.zeros(shape)
        np.add.at(counts, (group, true), (np.asarray(predicted) == true).astype(np.float64))
        correct.append(counts)
    return correct, total


def _resample(correct: Sequence[Matrix], total: Matrix, seed: int) -> Matrix:
    """Balanced accuracy of each prediction on each resample, [predictions, resamples]."""
    generator, num_groups = np.random.default_rng(seed), len(total)
    share = np.full(num_groups, 1 / num_groups)
    blocks = []
    for _ in range(0, NUM_RESAMPLES, _BLOCK):
        draws = generator.multinomial(num_groups, share, _BLOCK).astype(np.float64)
        blocks.append([_balanced(draws, counts, total) for counts in correct])
    return np.concatenate(blocks, axis=1)


def _balanced(draws: Matrix, correct: Matrix, total: Matrix) -> Matrix:
    """Balanced accuracy of each draw (how often each group is taken, [draws, groups])."""
    support = draws @ total
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.nanmean(np.where(support > 0, draws @ correct / support, np.nan), axis=1))
