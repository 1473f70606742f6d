"""Intervals and paired tests of any figure of a confusion matrix."""

from __future__ import annotations

import numpy as np
import pytest

from eosin.metrics.bootstrap import Figure, group_confusions, interval, paired_difference, paired_interval
from eosin.metrics.classification import balanced_accuracy, f1_macro, top1
from eosin.metrics.segmentation import dice

FIGURES: tuple[Figure, ...] = ("balanced_accuracy", "top1", "f1_macro")


def _predictions(seed: int, right: float, num: int = 240) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    random = np.random.default_rng(seed)
    truth = random.choice(3, num, p=[0.6, 0.3, 0.1])
    return truth, np.where(random.random(num) < right, truth, random.integers(0, 3, num))


def _figure(name: str, counts: np.ndarray) -> float:  # type: ignore[type-arg]
    return {"balanced_accuracy": balanced_accuracy, "top1": top1, "f1_macro": f1_macro}[name](counts)


@pytest.mark.parametrize("figure", FIGURES)
def test_a_paired_difference_is_that_of_the_figures_themselves(figure: Figure) -> None:
    truth, poor = _predictions(1, 0.3)
    good = _predictions(1, 0.9)[1]
    found = paired_difference(truth, poor, good, figure=figure)
    whole = [group_confusions(truth, each, num_classes=3).sum(axis=0) for each in (poor, good)]
    assert found.difference == pytest.approx(_figure(figure, whole[1]) - _figure(figure, whole[0]))
    assert found.low < found.difference < found.high
    assert found.p_value < 0.01
    assert paired_difference(truth, poor, poor, figure=figure).p_value == 1.0


@pytest.mark.parametrize("figure", FIGURES)
def test_intervals_are_as_wide_as_resampling_one_by_one_makes_them(figure: Figure) -> None:
    truth, guess = _predictions(4, 0.6)
    found = interval(group_confusions(truth, guess, num_classes=3), figure)
    random = np.random.default_rng(99)
    scores = []
    for _ in range(600):
        rows = random.integers(0, len(truth), len(truth))
        scores.append(_figure(figure, group_confusions(truth[rows], guess[rows], num_classes=3).sum(axis=0)))
    low, high = np.percentile(scores, [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)


def test_dice_over_images_leaves_the_background_out() -> None:
    random = np.random.default_rng(0)
    counts = random.integers(1, 200, (12, 3, 3))
    each = dice(counts.sum(axis=0))
    found = interval(counts, "dice", counted=[1, 2])
    mean = float(np.mean([value for value in each[1:] if value is not None]))
    assert found.low < mean < found.high
    assert found.num_groups == 12
    with_background = paired_interval(counts, counts, "dice")
    assert (with_background.difference, with_background.p_value) == (0.0, 1.0)


def test_a_class_absent_from_truth_does_not_count_in_dice() -> None:
    counts = np.zeros((4, 3, 3))
    counts[:, 0, 0], counts[:, 1, 1], counts[:, 0, 2] = 50, 10, 30
    found = interval(counts, "dice", counted=[1, 2])
    assert (found.low, found.high) == (1.0, 1.0)


def test_counts_of_other_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="not of the same groups"):
        paired_interval(np.ones((3, 2, 2)), np.ones((4, 2, 2)), "top1")
