"""Confidence intervals over patients or images: the jackknife on the logit scale.

Percentile intervals of a bootstrap are too short with few groups: 95 % ones hold the true value in 54 % of
cases with 2 patients, 85 % with 4, 92 % with 30. Here a figure is made again without each group in turn; the
spread of its logit, with the quantile of Student's t for groups − 1 degrees of freedom, gives intervals that
hold it in 94 % and more from 6 groups on (`tests/unit/metrics/test_coverage.py` measures it).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from eosin.metrics.group_counts import MIN_GROUPS, Figure, Matrix, score_of

_LEVEL = 0.95
_MAX_REFITS = 40


def interval_over(num_groups: int, unit: str) -> str:
    """What intervals are over, in words: `12 patients`, or why there are none."""
    words = f"{num_groups} {unit}"
    return (
        words if num_groups >= MIN_GROUPS else f"{words}, too few for an interval ({MIN_GROUPS} are needed)"
    )


@dataclass(frozen=True)
class Interval:
    """At 95 %; `num_groups` is how many patients (or images) it is over."""

    low: float
    high: float
    num_groups: int


def interval(
    confusions: npt.ArrayLike, figure: Figure, *, counted: Sequence[int] | None = None
) -> Interval | None:
    """Of `figure` over groups with the counts `confusions` [groups, C, C]; None with fewer than `MIN_GROUPS`.

    `counted`: the classes that Dice is the mean of (None: all).
    """
    counts, score = np.asarray(confusions, dtype=np.float64), score_of(figure, counted)
    total = counts.sum(axis=0)
    if len(counts) < MIN_GROUPS:
        return None
    low = -1.0 if figure == "quadratic_kappa" else 0.0
    sizes = counts.sum(axis=(1, 2))
    return _jackknife(float(score(total[None])[0]), score(total[None] - counts), sizes, low=low)


def interval_without(
    figure: Callable[[npt.NDArray[np.bool_]], float], groups: Sequence[str] | None, num_samples: int
) -> Interval | None:
    """Of any figure from 0 to 1, given what it is of those samples that a mask [num_samples] keeps.

    `groups`: of each sample (None: each its own). More than 40 groups are dealt at random into 40 blocks
    that are left out whole. None with fewer than `MIN_GROUPS` groups, or where leaving one out leaves
    nothing defined (`figure` gives nan or raises ValueError).
    """
    names = np.asarray(range(num_samples) if groups is None else groups)
    _, codes = np.unique(names, return_inverse=True)
    num_groups = int(codes.max()) + 1 if len(codes) else 0
    if num_groups < MIN_GROUPS:
        return None
    if num_groups > _MAX_REFITS:
        codes = (np.random.default_rng(0).permutation(num_groups) % _MAX_REFITS)[codes]
    try:
        whole = figure(np.ones(num_samples, dtype=bool))
        without = np.array([figure(codes != each) for each in range(int(codes.max()) + 1)])
    except ValueError:
        return None
    found = _jackknife(whole, without, np.bincount(codes).astype(np.float64))
    return found and Interval(found.low, found.high, num_groups)


def interval_over_folds(values: Sequence[float], test_share: float, low: float = 0) -> tuple[float, float]:
    """Of the mean of a figure's `values`, one a fold that tests `test_share` samples for each it learns from.

    Student's t with the variance (1/k + share) · s² (Nadeau & Bengio, "Inference for the Generalization
    Error", Machine Learning 52, 2003), cut at `low` and 1; folds all alike are one draw each.
    """
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    if spread < 1e-12:
        alike = _without_spread((mean - low) / (1 - low), len(values), low, 1 - low)
        return alike.low, alike.high
    reach = stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1) * spread * (1 / len(values) + test_share) ** 0.5
    return float(max(low, mean - reach)), float(min(1.0, mean + reach))


def _jackknife(whole: float, without: Matrix, sizes: Matrix, *, low: float = 0.0) -> Interval | None:
    """Tukey 1958, on the logit of the figure's place between its bounds, `low` and 1.

    Groups of unequal `sizes` count for (Σn)² / Σn² equal ones in the degrees of freedom (Kish 1965; Carter,
    Schnepel and Steigerwald 2017): a patient with half of all images is most of what is known.
    """
    num_groups = len(without)
    effective = max(2.0, float(sizes.sum() ** 2 / (sizes**2).sum()))
    if not np.isfinite(whole) or not np.isfinite(without).all():
        return None
    width = 1 - low
    if np.ptp(without) < 1e-12:
        return _without_spread((whole - low) / width, num_groups, low, width)
    half = 0.5 / (sizes.sum() + 1)  # half a sample keeps 0 and 1 finite
    place = np.clip((np.append(without, whole) - low) / width, half, 1 - half)
    logits = np.log(place / (1 - place))
    spread = np.sqrt((num_groups - 1) / num_groups * ((logits[:-1] - logits[:-1].mean()) ** 2).sum())
    reach = stats.t.ppf((1 + _LEVEL) / 2, effective - 1) * spread
    ends = 1 / (1 + np.exp(-(logits[-1] + np.array([-reach, reach]))))
    return Interval(float(low + width * ends[0]), float(low + width * ends[1]), num_groups)


def _without_spread(place: float, num_groups: int, low: float, width: float) -> Interval:
    """All groups alike, as where every one is right: then each group is one draw (Clopper & Pearson 1934)."""
    found = stats.binomtest(round(place * num_groups), num_groups).proportion_ci(_LEVEL, "exact")
    ends = min(float(found.low), place), max(float(found.high), place)
    return Interval(low + width * ends[0], low + width * ends[1], num_groups)
