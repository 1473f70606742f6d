"""Significance of the difference of one figure between two models, from their metric records."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import get_args

import numpy as np

from eosin.metrics.group_counts import MIN_GROUPS, Figure, Matrix, group_confusions, paired_difference
from eosin.records import MetricRecord
from eosin.records.details import ClassifierDetails, JudgedDetails, SegmentationDetails

_MAX_EXACT, _NUM_DRAWS = 200_000, 10_000


@dataclass(frozen=True)
class Significance:
    """Of the second model's figure less the first's."""

    p_value: float | None
    """Two-sided, that the two models are equal; None where too few patients or images can carry a test."""
    how: str
    """What was exchanged, or why there is no p."""
    difference: float
    """As the test sees it, over all runs."""
    num_groups: int = 0
    """Patients or images that were exchanged; 0: runs were."""
    unit: str = "runs"
    """What was exchanged: patients, images or runs."""


def significance(before: MetricRecord, after: MetricRecord, metric: str) -> Significance | None:
    """Exchange of patients' (or images') results, of all runs, where both records keep them; else of runs.

    None where each has a single value and nothing by patient or image. Both records are of one task and
    judged on the same data; see `eosin.metrics.group_counts` and `eosin.metrics.significance` for the tests.
    """
    return _by_group(before, after, metric) or _by_run(before, after, metric)


def _by_group(before: MetricRecord, after: MetricRecord, metric: str) -> Significance | None:
    first, second = before.details, after.details
    if not isinstance(first, JudgedDetails) or not isinstance(second, JudgedDetails):
        return None
    figure = next((name for name in get_args(Figure) if name == metric), None)
    found = _paired_counts(first, second)
    if figure is None or found is None:
        return None
    counted = second.counted_classes if isinstance(second, SegmentationDetails) else None
    test = paired_difference(*found, figure, counted=counted)
    unit = _unit(second)
    how = f"exchange of the results of {test.num_groups} {unit}"
    if test.p_value is None:
        how = f"no test: {test.num_groups} {unit}, {MIN_GROUPS} are needed"
    return Significance(test.p_value, how, test.difference, test.num_groups, unit)


def _unit(details: JudgedDetails) -> str:
    if isinstance(details, ClassifierDetails) and details.truth:
        return "patients" if details.patients else "images"
    return "patients" if "patients" in details.interval_over else "images"


def _paired_counts(first: JudgedDetails, second: JudgedDetails) -> tuple[Matrix, Matrix] | None:
    """Counts of both over the same groups; None where they keep none, or judged other samples."""
    if isinstance(first, ClassifierDetails) and isinstance(second, ClassifierDetails) and second.truth:
        if (first.truth, first.patients) != (second.truth, second.patients):
            return None
        if not first.predicted or not second.predicted:
            return None
        sides = (np.asarray(each.predicted) for each in (first, second))
        size = 1 + max(max(second.truth), *(max(map(max, each.predicted)) for each in (first, second)))
        one, two = (
            group_confusions(second.truth, side, groups=second.patients or None, num_classes=size)
            for side in sides
        )
        return one, two
    return _kept_counts(first, second)


def _kept_counts(first: JudgedDetails, second: JudgedDetails) -> tuple[Matrix, Matrix] | None:
    one, two = first.group_confusions, second.group_confusions
    if not one or one.keys() != two.keys():
        return None
    if getattr(first, "counted_classes", ()) != getattr(second, "counted_classes", ()):
        return None
    counts = [np.asarray([each[name] for name in sorted(one)], dtype=np.float64) for each in (one, two)]
    if counts[0].shape != counts[1].shape:
        return None
    # Of as many runs as each has: shares are what compares.
    scaled = counts[0] * (counts[1].sum() / max(counts[0].sum(), 1.0))
    return scaled, counts[1]


def _by_run(before: MetricRecord, after: MetricRecord, metric: str) -> Significance | None:
    if metric not in before.metrics or metric not in after.metrics:
        return None
    if after.details.num_folds:  # folds share what they learn from: no exchange of them is fair
        return None
    first, second = before.metrics[metric], after.metrics[metric]
    if min(len(first.values), len(second.values)) < 2:
        return None
    p_value = permutation_p_value(first.values, second.values)
    how = f"exchange of {len(first.values)} and {len(second.values)} runs; patients stay the same"
    return Significance(p_value, how, second.mean - first.mean)


def permutation_p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p of the difference of means, if runs could belong to either side.

    Exact where all exchanges can be counted (two sides of up to ten runs), else of 10,000 random ones. With 5
    runs a side p is never below 2/252, with 3 never below 2/20. Raises ValueError for an empty side.
    """
    if not first or not second:
        raise ValueError(f"{len(first)} and {len(second)} runs")
    values, size = np.asarray([*first, *second], dtype=np.float64), len(first)
    exact = comb(len(values), size) <= _MAX_EXACT
    if exact:
        sides = np.array(list(combinations(range(len(values)), size)))
    else:
        sides = np.random.default_rng(0).random((_NUM_DRAWS, len(values))).argsort(axis=1)[:, :size]
    sums = values[sides].sum(axis=1)
    differences = np.abs(sums / size - (values.sum() - sums) / len(second))
    observed = abs(np.mean(first) - np.mean(second))
    # The same exchange summed in another order differs in the last bits.
    extreme = int((differences >= observed - 1e-12 * np.abs(values).max()).sum())
    # The runs as they were are one more draw (Phipson & Smyth 2010): p is never zero.
    return extreme / len(sides) if exact else (extreme + 1) / (len(sides) + 1)
