"""Confusion counts of each patient or image, figures made of them, and the paired test of two models.

Samples of one patient are not independent, so whatever says how sure a figure is works on whole groups.
Counts are float64 [groups, C, C], row the true class, column the predicted one; they add up.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

MIN_GROUPS = 6
"""With fewer no exact test of two sides can fall below .05: 2 / 2^5 is .0625."""
_MAX_EXACT = 13
_NUM_FLIPS = 4_999
_BLOCK = 250

Figure = Literal["balanced_accuracy", "top1", "f1_macro", "dice", "quadratic_kappa"]
Score = Callable[[Matrix], Matrix]
"""From confusion counts [n, C, C] to a figure of each, [n]; nan where it is not defined."""


@dataclass(frozen=True)
class PairedDifference:
    """Of one figure, second minus first, over the same groups."""

    difference: float
    p_value: float | None
    """Two-sided, that the two models are equal; None with fewer than `MIN_GROUPS` groups."""
    num_groups: int


def group_confusions(
    truth: npt.ArrayLike,
    predicted: npt.ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> Matrix:
    """Counts of each group in the order of their names; `groups` None: each sample its own.

    `truth` [N]; `predicted` [N] of one run or [S, N] of several, of which the counts are the mean. Raises
    ValueError where lengths differ or nothing is given.
    """
    true, guesses = np.asarray(truth, dtype=np.int64), np.atleast_2d(np.asarray(predicted, dtype=np.int64))
    names: Sequence[object] = range(len(true)) if groups is None else groups
    if len(names) != len(true) or guesses.shape[1] != len(true) or not len(true):
        raise ValueError(f"{len(names)} groups and {guesses.shape[1]} predictions for {len(true)} samples")
    _, group = np.unique(np.asarray(names), return_inverse=True)
    size = num_classes or 1 + int(max(true.max(), guesses.max()))
    counts = np.zeros((int(group.max()) + 1, size, size))
    for guess in guesses:
        np.add.at(counts, (group, true, guess), 1.0 / len(guesses))
    return counts


def score_of(figure: Figure, counted: Sequence[int] | None = None) -> Score:
    """The function that gives `figure` of counts. `counted`: the classes Dice is the mean of (None: all)."""
    if figure == "dice":
        return lambda counts: _mean_dice(counts, counted)
    scores: dict[str, Score] = {
        "balanced_accuracy": _balanced, "top1": _top1, "f1_macro": _f1, "quadratic_kappa": _quadratic_kappa,
    }  # fmt: skip
    return scores[figure]


def paired_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    figure: Figure,
    *,
    counted: Sequence[int] | None = None,
    seed: int = 0,
) -> PairedDifference:
    """Is `second` better than `first` on the same groups? Counts [groups, C, C] each, of all runs.

    If the models were equal, each group's results could be exchanged between them (Fisher 1935; the sign-flip
    test where the figure is a mean over groups). All exchanges are counted where the groups that differ are
    at most 13; else 4,999 are drawn and the observed one counted among them (Phipson & Smyth 2010), so the
    level holds with any number of groups. Raises ValueError where the shapes differ.
    """
    one, two = (np.asarray(each, dtype=np.float64) for each in (first, second))
    if one.shape != two.shape:
        raise ValueError(f"counts {one.shape} and {two.shape} are not of the same groups")
    score, total = score_of(figure, counted), one.sum(axis=0) + two.sum(axis=0)
    base = two.sum(axis=0)[None]
    observed = _difference(score, base, total)[0]
    if len(one) < MIN_GROUPS:
        return PairedDifference(float(observed), None, len(one))
    differing = (one != two).any(axis=(1, 2))
    change = (one - two)[differing].reshape(-1, total.size)
    found = [
        _difference(score, base + (flips @ change).reshape(-1, *total.shape), total)
        for flips in _flips(len(change), seed)
    ]
    # The slack keeps rounding from telling apart equal exchanges; what is not defined counts against.
    extreme = ~(np.abs(np.concatenate(found)) < abs(observed) - 1e-12)
    exact = len(change) <= _MAX_EXACT
    p_value = extreme.mean() if exact else (extreme.sum() + 1) / (len(extreme) + 1)
    return PairedDifference(float(observed), float(p_value), len(one))


def _flips(num_groups: int, seed: int) -> Iterator[Matrix]:
    """Which groups are exchanged, 0 or 1 [n, num_groups]: every way where they are few, else drawn."""
    if num_groups <= _MAX_EXACT:
        every = np.arange(2**num_groups)[:, None] >> np.arange(num_groups) & 1
        yield every.astype(np.float64)
        return
    generator = np.random.default_rng(seed)
    for start in range(0, _NUM_FLIPS, _BLOCK):
        yield generator.integers(0, 2, (min(_BLOCK, _NUM_FLIPS - start), num_groups)).astype(np.float64)


def _difference(score: Score, second: Matrix, total: Matrix) -> Matrix:
    """Of the figure: counts `second` [n, C, C] are one model's, the rest of `total` the other's."""
    return np.asarray(score(second) - score(total - second))


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


def _quadratic_kappa(counts: Matrix) -> Matrix:
    """1 − Σ w·observed / Σ w·expected with w = (i − j)² (Cohen 1968)."""
    place = np.arange(counts.shape[1])
    weights = (place[:, None] - place[None, :]) ** 2
    expected = counts.sum(axis=2)[:, :, None] * counts.sum(axis=1)[:, None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = expected / counts.sum(axis=(1, 2))[:, None, None]
        return np.asarray(1 - (weights * counts).sum(axis=(1, 2)) / (weights * expected).sum(axis=(1, 2)))


def _diagonal(counts: Matrix) -> Matrix:
    return np.diagonal(counts, axis1=1, axis2=2)


def _mean_of(parts: Matrix, wholes: Matrix) -> Matrix:
    """Mean of parts / wholes, [n, C], over those with a whole above 0; nan where there is none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.where(wholes > 0, parts / wholes, np.nan)
    defined = np.isfinite(shares)
    count = defined.sum(axis=1)
    return np.where(count > 0, np.where(defined, shares, 0).sum(axis=1) / np.maximum(count, 1), np.nan)
