"""The paired test over patients: exact where it can be counted, silent where it cannot be carried."""

from itertools import product

import numpy as np
import pytest
from sklearn import metrics

from eosin.metrics.group_counts import MIN_GROUPS, Figure, group_confusions, paired_difference, score_of

SKLEARN = {
    "balanced_accuracy": metrics.balanced_accuracy_score,
    "top1": metrics.accuracy_score,
    "f1_macro": lambda t, p: metrics.f1_score(t, p, average="macro"),
    "quadratic_kappa": lambda t, p: metrics.cohen_kappa_score(t, p, weights="quadratic"),
}


def _patients(seed: int, num: int, per: int = 20, better: float = 0.0) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    truth, names = np.tile([0, 1], num * per // 2), np.repeat(np.arange(num), per)
    sides = []
    for shift in (0.0, better):
        accuracy = np.clip(0.7 + shift + 0.1 * random.normal(size=num), 0.02, 0.98)
        sides.append(np.where(random.random(len(truth)) < accuracy[names], truth, 1 - truth))
    counts = [
        group_confusions(truth, side, groups=names.astype(str).tolist(), num_classes=2) for side in sides
    ]
    return truth, names, *sides, *counts


@pytest.mark.parametrize("figure", SKLEARN)
def test_figures_of_counts_are_scikit_learns(figure: Figure) -> None:
    random = np.random.default_rng(1)
    truth = random.choice(4, 300, p=[0.5, 0.3, 0.15, 0.05])
    guess = np.where(random.random(300) < 0.6, truth, random.integers(0, 4, 300))
    counts = group_confusions(truth, guess, num_classes=4)
    assert counts.shape == (300, 4, 4)
    assert score_of(figure)(counts.sum(axis=0)[None])[0] == pytest.approx(SKLEARN[figure](truth, guess))


@pytest.mark.parametrize("num", [6, 9])
def test_p_is_that_of_every_sign_flip_over_patients(num: int) -> None:
    """With as many of each class in every patient, exchanging results flips the sign of its difference."""
    truth, names, first, second, *counts = _patients(5, num)
    difference = np.array([
        np.mean((second == truth)[names == k]) - np.mean((first == truth)[names == k]) for k in range(num)
    ])  # fmt: skip
    signs = np.array(list(product([1, -1], repeat=num)))
    wanted = (np.abs((signs * difference).mean(axis=1)) >= abs(difference.mean()) - 1e-12).mean()
    found = paired_difference(counts[0], counts[1], "balanced_accuracy")
    assert found.p_value == pytest.approx(wanted)
    assert found.difference == pytest.approx(difference.mean())


@pytest.mark.parametrize("num", range(1, MIN_GROUPS))
def test_too_few_patients_give_no_p(num: int) -> None:
    *_, first, second = _patients(1, num, better=0.25)
    found = paired_difference(first, second, "balanced_accuracy")
    assert (found.p_value, found.num_groups) == (None, num)
    assert found.difference != 0


def test_a_large_difference_over_many_patients_is_found_and_no_difference_is_not() -> None:
    *_, first, second = _patients(2, 40, better=0.2)
    better = paired_difference(first, second, "balanced_accuracy")
    assert better.difference > 0.1 and better.p_value is not None and better.p_value < 0.001
    assert paired_difference(first, first, "balanced_accuracy").p_value == 1.0
    assert paired_difference(second, first, "balanced_accuracy").p_value == pytest.approx(
        better.p_value, abs=0.01
    )


def test_counts_of_several_runs_are_their_mean() -> None:
    truth, runs = [0, 1, 1], [[0, 1, 0], [0, 0, 0]]
    counts = group_confusions(truth, runs, groups=["a", "b", "b"])
    assert counts.tolist() == [[[1, 0], [0, 0]], [[0, 0], [1.5, 0.5]]]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="not of the same groups"):
        paired_difference(np.ones((3, 2, 2)), np.ones((4, 2, 2)), "top1")
    with pytest.raises(ValueError, match="2 groups and 3 predictions for 3 samples"):
        group_confusions([0, 1, 1], [0, 1, 1], groups=["a", "b"])


def test_a_class_absent_from_truth_does_not_count_in_dice() -> None:
    counts = np.zeros((6, 3, 3))
    counts[:, 0, 0], counts[:, 1, 1], counts[:, 0, 2] = 50, 10, 30
    assert score_of("dice", [1, 2])(counts.sum(axis=0)[None]).tolist() == [1.0]


def test_a_figure_that_is_not_defined_is_no_difference() -> None:
    """One class in truth, all of it right: kappa is 0 / 0."""
    right = np.zeros((6, 2, 2))
    right[:, 0, 0] = 3
    wrong = right.copy()
    wrong[0, 0] = 2, 1
    for first, second in ((right, right), (right, wrong), (wrong, right)):
        assert paired_difference(first, second, "quadratic_kappa").p_value == 1.0
