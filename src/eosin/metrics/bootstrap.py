"""Confidence intervals by resampling patients, not patches: patches of one patient are not independent.

All of it works on confusion counts of each group (patient, image), [groups, C, C]: they add up, so a
resample is one matrix product, and any figure of a confusion matrix has its interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from eosin.metrics.matrix import Matrix

NUM_RESAMPLES = 1000
_BLOCK = 100

Figure = Literal["balanced_accuracy", "top1", "f1_macro", "dice"]


@dataclass(frozen=True)
class Interval:
    """Percentile interval at 95 %. `num_groups`: the patients (or samples) that were resampled."""

    low: float
    high: float
    num_groups: int


@dataclass(frozen=True)
class PairedDifference:
    """Of one figure, second minus first; `p_value` two-sided, that the two are equal."""

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
    return interval(group_confusions(truth, predicted, groups=groups), "balanced_accuracy", seed=seed)


def paired_difference(
    truth: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    figure: Figure = "balanced_accuracy",
    seed: int = 0,
) -> PairedDifference:
    """Is `second` better than `first` on the same samples? Both are judged on the same resamples."""
    num_classes = 1 + max(int(np.max(np.asarray(each), initial=0)) for each in (truth, first, second))
    confusions = [
        group_confusions(truth, each, groups=groups, num_classes=num_classes) for each in (first, second)
    ]
    return paired_interval(confusions[0], confusions[1], figure, seed=seed)


def group_confusions(
    truth: npt.ArrayLike,
    predicted: npt.ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> Matrix:
    """Confusion counts of each group, float64 [groups, C, C], row the true class.

    Raises ValueError where lengths differ or nothing is given.
    """
    true, guess = np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    names: Sequence[object] = range(len(true)) if groups is None else groups
    if len(names) != len(true) or len(guess) != len(true) or not len(true):
        raise ValueError(f"{len(names)} groups and {len(guess)} predictions for {len(true)} samples")
    _, group = np.unique(np.asarray(names), return_inverse=True)
    size = num_classes or 1 + int(max(true.max(), guess.max()))
    counts = np.zeros((int(group.max()) + 1, size, size))
    np.add.at(counts, (group, true, guess), 1.0)
    return counts


def interval(
    confusions: npt.ArrayLike, figure: Figure, *, counted: Sequence[int] | None = None, seed: int = 0
) -> Interval:
    """95 % percentile interval of `figure` over groups with the counts `confusions` [groups, C, C].

    `counted`: the classes that Dice is the mean of (None: all).
    """
    counts = np.asarray(confusions, dtype=np.float64)
    scores = _resample([counts], _score(figure, counted), seed)[0]
    low, high = np.nanpercentile(scores, [2.5, 97.5])
    return Interval(float(low), float(high), len(counts))


def paired_interval(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    figure: Figure,
    *,
    counted: Sequence[int] | None = None,
    seed: int = 0,
) -> PairedDifference:
    """`figure` of `second` less that of `first`, over the same groups; each [groups, C, C].

    Raises ValueError where the shapes differ.
    """
    counts = [np.asarray(each, dtype=np.float64) for each in (first, second)]
    if counts[0].shape != counts[1].shape:
        raise ValueError(f"counts {counts[0].shape} and {counts[1].shape} are not of the same groups")
    score = _score(figure, counted)
    scores = _resample(counts, score, seed)
    differences = scores[1] - scores[0]
    observed = float((score(counts[1].sum(axis=0)[None]) - score(counts[0].sum(axis=0)[None]))[0])
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    # Shifted to the null of no difference; the observed sample counts as one draw, so p is never 0.
    extreme = int((np.abs(differences - np.nanmean(differences)) >= abs(observed) - 1e-12).sum())
    return PairedDifference(observed, float(low), float(high), (extreme + 1) / (len(differences) + 1))


_Score = Callable[[Matrix], Matrix]
"""From confusion counts [n, C, C] to a figure of each, [n]."""


def _score(figure: Figure, counted: Sequence[int] | None) -> _Score:
    if figure == "dice":
        return lambda counts: _mean_dice(counts, counted)
    return {"balanced_accuracy": _balanced, "top1": _top1, "f1_macro": _f1}[figure]


def _resample(confusions: Sequence[Matrix], score: _Score, seed: int) -> Matrix:
    """The figure of each of `confusions` on each resample of their groups, [len, resamples]."""
    generator, num_groups = np.random.default_rng(seed), len(confusions[0])
    share = np.full(num_groups, 1 / num_groups)
    flat, shape = [counts.reshape(num_groups, -1) for counts in confusions], confusions[0].shape[1:]
    blocks = []
    for _ in range(0, NUM_RESAMPLES, _BLOCK):
        draws = generator.multinomial(num_groups, share, _BLOCK).astype(np.float64)
        blocks.append([score((draws @ counts).reshape(_BLOCK, *shape)) for counts in flat])
    return np.concatenate(blocks, axis=1)


def _balanced(counts: Matrix) -> Matrix:
    """Mean recall over the classes that occur in truth."""
    return _mean_of(_diagonal(counts), counts.sum(axis=2))


def _top1(counts: Matrix) -> Matrix:
    return np.asarray(_diagonal(counts).sum(axis=1) / counts.sum(axis=(1, 2)))


def _f1(counts: Matrix) -> Matrix:
    """Mean over the classes that occur in truth or prediction."""
    return _mean_of(2 * _diagonal(counts), counts.sum(axis=1) + counts.sum(axis=2))


def _mean_dice(counts: Matrix, counted: Sequence[int] | None) -> Matrix:
    """Mean over those of `counted` that occur in truth."""
    sizes = np.where(counts.sum(axis=2) > 0, counts.sum(axis=1) + counts.sum(axis=2), 0)
    chosen = slice(None) if counted is None else list(counted)
    return _mean_of(2 * _diagonal(counts)[:, chosen], sizes[:, chosen])


def _diagonal(counts: Matrix) -> Matrix:
    return np.diagonal(counts, axis1=1, axis2=2)


def _mean_of(parts: Matrix, wholes: Matrix) -> Matrix:
    """Mean of parts / wholes, [n, C], over those with a whole above 0; nan where there is none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.where(wholes > 0, parts / wholes, np.nan)
    defined = np.isfinite(shares)
    count = defined.sum(axis=1)
    return np.where(count > 0, np.where(defined, shares, 0).sum(axis=1) / np.maximum(count, 1), np.nan)
