"""Intervals over patients: inside the bounds, wide where patients are few, absent where they are too few."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from eosin.metrics.group_counts import group_confusions
from eosin.metrics.intervals import interval, interval_over, interval_without


def _counts(num: int, accuracy: float = 0.8, seed: int = 0, per: int = 40) -> np.ndarray:
    random = np.random.default_rng(seed)
    truth, names = np.tile([0, 1], num * per // 2), np.repeat(np.arange(num), per).astype(str).tolist()
    guess = np.where(random.random(len(truth)) < accuracy, truth, 1 - truth)
    return group_confusions(truth, guess, groups=names, num_classes=2)


def test_an_interval_holds_its_figure_and_stays_within_bounds() -> None:
    found = interval(_counts(12, 0.97), "balanced_accuracy")
    assert found is not None and found.num_groups == 12
    assert 0.9 < found.low < 0.97 < found.high < 1


@pytest.mark.parametrize("num", [1, 2, 5])
def test_too_few_patients_have_none_and_the_words_say_so(num: int) -> None:
    assert interval(_counts(num), "balanced_accuracy") is None
    assert interval_over(num, "patients") == f"{num} patients, too few for an interval (6 are needed)"
    assert interval_over(6, "patients") == "6 patients"


def test_few_patients_make_a_wide_interval() -> None:
    """Eight patients, each all right or all wrong: 400 patches tell no more than the eight."""
    truth = np.tile([0, 1], 200)
    patients = [f"p{i // 50}" for i in range(400)]
    guess = np.where(np.arange(400) // 50 % 2 == 0, truth, 1 - truth)
    alone = interval(group_confusions(truth, guess), "balanced_accuracy")
    grouped = interval(group_confusions(truth, guess, groups=patients), "balanced_accuracy")
    assert alone is not None and grouped is not None
    assert grouped.high - grouped.low > 3 * (alone.high - alone.low)


def test_all_right_is_not_certain() -> None:
    found = interval(_counts(10, 1.1), "top1")
    assert found is not None and found.high == 1.0
    assert found.low == pytest.approx(0.025 ** (1 / 10)), "Clopper and Pearson, ten of ten"


def test_any_figure_of_samples_has_one() -> None:
    random = np.random.default_rng(3)
    truth = random.integers(0, 2, 400)
    score = truth + random.normal(size=400)

    def auroc(kept: np.ndarray) -> float:
        return float(roc_auc_score(truth[kept], score[kept]))

    found = interval_without(auroc, None, 400)
    # Hanley and McNeil 1982 give a standard error of about 0.022 here.
    assert found is not None and found.num_groups == 400
    assert found.low < auroc(np.ones(400, dtype=bool)) < found.high
    assert 0.06 < found.high - found.low < 0.13
    few = [f"p{i % 4}" for i in range(400)]
    assert interval_without(auroc, few, 400) is None
