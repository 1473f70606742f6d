"""Figures of predictions, worked out by hand, and their bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest

from eosin.metrics.bootstrap import balanced_accuracy_interval, paired_difference
from eosin.metrics.classification import (
    balanced_accuracy,
    calibration_error,
    confusion_matrix,
    f1_macro,
    recalls,
    top1,
)

TRUTH = [0, 0, 0, 0, 1, 1, 2]
GUESS = [0, 0, 0, 1, 1, 0, 0]


def test_figures_of_a_small_confusion_matrix() -> None:
    confusion = confusion_matrix(TRUTH, GUESS, 4)
    assert confusion.tolist() == [[3, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert top1(confusion) == pytest.approx(4 / 7)
    assert recalls(confusion) == [0.75, 0.5, 0.0, None]
    assert balanced_accuracy(confusion) == pytest.approx((0.75 + 0.5 + 0.0) / 3)
    assert f1_macro(confusion) == pytest.approx((2 * 3 / 9 + 2 * 1 / 4 + 0) / 3)


@pytest.mark.parametrize(("truth", "guess"), [([], []), ([0, 1], [0]), ([0, 3], [0, 0]), ([0, 0], [0, -1])])
def test_predictions_that_do_not_fit_are_refused(truth: list[int], guess: list[int]) -> None:
    with pytest.raises(ValueError, match=r"true classes|outside"):
        confusion_matrix(truth, guess, 3)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    p = np.array([[0.9, 0.1]] * 10)
    truth = np.array([0] * 6 + [1] * 4)
    assert calibration_error(truth, p) == pytest.approx(0.3)
    assert calibration_error(np.zeros(10, dtype=int), np.array([[1.0, 0.0]] * 10)) == 0.0


def test_interval_holds_the_figure_and_is_the_same_each_time() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, 400)
    guess = np.where(generator.random(400) < 0.7, truth, (truth + 1) % 3)
    first, second = balanced_accuracy_interval(truth, guess), balanced_accuracy_interval(truth, guess)
    assert first == second
    assert first.low < balanced_accuracy(confusion_matrix(truth, guess, 3)) < first.high
    assert 0.05 < first.high - first.low < 0.15


def test_few_patients_make_a_wide_interval() -> None:
    """Eight patients, each all right or all wrong: 400 patches tell no more than the eight."""
    truth = np.tile([0, 1], 200)
    patients = [f"p{i // 50}" for i in range(400)]
    guess = np.where(np.arange(400) // 50 % 2 == 0, truth, 1 - truth)
    alone = balanced_accuracy_interval(truth, guess)
    grouped = balanced_accuracy_interval(truth, guess, groups=patients)
    assert grouped.num_groups == 8
    assert grouped.high - grouped.low > 3 * (alone.high - alone.low)


def test_a_better_model_is_told_from_an_equal_one() -> None:
    generator = np.random.default_rng(5)
    truth = generator.integers(0, 4, 300)
    poor = np.where(generator.random(300) < 0.5, truth, (truth + 1) % 4)
    good = np.where(generator.random(300) < 0.8, truth, (truth + 2) % 4)
    better = paired_difference(truth, poor, good)
    assert better.difference > 0.2
    assert better.low > 0
    assert better.p_value < 0.01
    same = paired_difference(truth, poor, poor)
    assert (same.difference, same.p_value) == (0.0, 1.0)


def test_groups_must_name_every_sample() -> None:
    with pytest.raises(ValueError, match="2 groups and 3 predictions for 3 samples"):
        balanced_accuracy_interval([0, 1, 1], [0, 1, 1], groups=["a", "b"])
