"""Significance of the difference of one figure between two models, from their metric records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np

from eosin.metrics.group_counts import MIN_GROUPS, Figure, group_confusions, paired_difference
from eosin.metrics.matrix import Matrix
from eosin.metrics.permutation import permutation_p_value
from eosin.records import MetricRecord
from eosin.records.details import ClassifierDetails, JudgedDetails, SegmentationDetails

_FIGURES: tuple[str, ...] = get_args(Figure)


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
    judged on the same data; see `eosin.metrics.group_counts` and `eosin.metrics.permutation` for the tests.
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
    first, second = before.metrics[metric], after.metrics[metric]
    if min(len(first.values), len(second.values)) < 2:
        return None
    p_value = permutation_p_value(first.values, second.values)
    how = f"exchange of {len(first.values)} and {len(second.values)} runs; patients stay the same"
    return Significance(p_value, how, second.mean - first.mean)
