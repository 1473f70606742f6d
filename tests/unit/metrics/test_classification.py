"""Figures of predictions, worked out by hand and by the libraries' own functions."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from eosin.metrics.classification import (
    accuracies,
    calibration_error,
    confusion_matrix,
    quadratic_kappa,
    ranking_figures,
    recalls,
)

TRUTH = [0, 0, 0, 0, 1, 1, 2]
GUESS = [0, 0, 0, 1, 1, 0, 0]


def test_figures_of_a_few_predictions() -> None:
    confusion = confusion_matrix(TRUTH, GUESS, 4)
    assert confusion.tolist() == [[3, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert recalls(confusion) == [0.75, 0.5, 0.0, None]
    found = accuracies(np.array(TRUTH), np.array(GUESS))
    assert found["top1"] == pytest.approx(4 / 7)
    assert found["balanced_accuracy"] == pytest.approx((0.75 + 0.5 + 0.0) / 3)
    assert found["f1_macro"] == pytest.approx((2 * 3 / 9 + 2 * 1 / 4 + 0) / 3)


@pytest.mark.parametrize(("truth", "guess"), [([], []), ([0, 1], [0]), ([0, 3], [0, 0]), ([0, 0], [0, -1])])
def test_predictions_that_do_not_fit_are_refused(truth: list[int], guess: list[int]) -> None:
    with pytest.raises(ValueError, match=r"true classes|outside"):
        confusion_matrix(truth, guess, 3)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    p = np.array([[0.9, 0.1]] * 10)
    truth = np.array([0] * 6 + [1] * 4)
    assert calibration_error(truth, p) == pytest.approx(0.3)
    assert calibration_error(np.zeros(10, dtype=int), np.array([[1.0, 0.0]] * 10)) == 0.0


def test_ranking_of_two_classes_is_of_the_second_and_of_more_the_macro_mean() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 200)
    p = random.dirichlet(np.ones(3), 200) + np.eye(3)[truth]
    p /= p.sum(axis=1, keepdims=True)
    found = ranking_figures(truth, p)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, p, multi_class="ovr"))
    two = ranking_figures(
        np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.6, 0.4], [0.65, 0.35], [0.2, 0.8]])
    )
    assert two["auroc"] == pytest.approx(0.75)
    assert two["auprc"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert ranking_figures(np.array([0, 0, 1]), p[:3]) == {}, "a class without a sample has no ranking"


def test_kappa_forgives_near_misses_more_than_far_ones() -> None:
    truth = np.array([0, 1, 2, 3, 4, 5] * 5)
    near, far = np.clip(truth + 1, 0, 5), 5 - truth
    assert quadratic_kappa(truth, truth) == 1.0
    assert quadratic_kappa(truth, near) > 0.7 > 0 > quadratic_kappa(truth, far)
