"""Significance of the difference of one figure between two models, from their metric records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np

from eosin.metrics.bootstrap import Figure, paired_difference, paired_interval
from eosin.metrics.permutation import permutation_p_value
from eosin.records import MetricRecord
from eosin.records.details import ClassifierDetails, Details, SegmentationDetails

_FIGURES: tuple[Figure, ...] = get_args(Figure)


@dataclass(frozen=True)
class Significance:
    """How likely the difference of two models is by chance alone."""

    p_value: float
    """Two-sided, that the two models are equal."""
    how: str
    """What was resampled or exchanged."""


def significance(before: MetricRecord, after: MetricRecord, metric: str) -> Significance | None:
    """Paired bootstrap where both kept what they predicted on the same samples (of the first seed), else
    a permutation of their seeds; None where each has a single value and no predictions.

    Both records are of one task and judged on the same data; see `eosin.metrics.bootstrap` and
    `eosin.metrics.permutation` for the tests.
    """
    paired = _by_prediction(before.details, after.details, metric)
    return paired or _by_pixel(before.details, after.details, metric) or _by_seed(before, after, metric)


def _by_prediction(before: Details, after: Details, metric: str) -> Significance | None:
    figure = next((name for name in _FIGURES if name == metric), None)
    if not isinstance(before, ClassifierDetails) or not isinstance(after, ClassifierDetails):
        return None
    if figure is None or not after.truth or not before.predicted or not after.predicted:
        return None
    if (before.truth, before.patients) != (after.truth, after.patients):
        return None
    patients = after.patients or None
    found = paired_difference(
        after.truth, before.predicted[0], after.predicted[0], groups=patients, figure=figure
    )
    return Significance(found.p_value, f"paired bootstrap over {'patients' if patients else 'images'}")


def _by_pixel(before: Details, after: Details, metric: str) -> Significance | None:
    """Of Dice: counts of each patient or image are kept in place of the pixels."""
    if not isinstance(before, SegmentationDetails) or not isinstance(after, SegmentationDetails):
        return None
    first, second, counted = before.group_confusions, after.group_confusions, after.counted_classes
    if metric != "dice" or not first or not second or first.keys() != second.keys():
        return None
    if before.counted_classes != counted:
        return None
    counts = [
        np.asarray([each[name] for name in sorted(first)], dtype=np.float64) for each in (first, second)
    ]
    if counts[0].shape != counts[1].shape:
        return None
    found = paired_interval(counts[0], counts[1], "dice", counted=counted)
    over = after.interval_over.rpartition(" ")[2] or "images"
    return Significance(found.p_value, f"paired bootstrap over {over}")


def _by_seed(before: MetricRecord, after: MetricRecord, metric: str) -> Significance | None:
    if metric not in before.metrics or metric not in after.metrics:
        return None
    first, second = before.metrics[metric].values, after.metrics[metric].values
    if min(len(first), len(second)) < 2:
        return None
    p_value = permutation_p_value(first, second)
    return Significance(p_value, f"permutation of {len(first)} and {len(second)} seeds")
