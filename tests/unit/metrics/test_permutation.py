"""The permutation test counts exchanges, by hand where there are few."""

import numpy as np
import pytest
from scipy import stats

from eosin.metrics.significance import permutation_p_value


def test_counted_by_hand() -> None:
    # Of the 6 ways to deal 1 2 | 3 5 into pairs, {1,2|3,5} and its mirror are as far apart as observed.
    assert permutation_p_value([1.0, 2.0], [3.0, 5.0]) == pytest.approx(2 / 6)


def test_equal_runs_are_never_different_however_they_round() -> None:
    assert permutation_p_value([0.1, 0.2, 0.3], [0.3, 0.1, 0.2]) == 1.0
    assert permutation_p_value([0.1] * 5, [0.1] * 5) == 1.0


def test_sides_of_different_size_and_order_of_sides_do_not_matter() -> None:
    first, second = [0.4, 0.5, 0.42, 0.44], [0.8, 0.79, 0.85, 0.9, 0.7, 0.81]
    p_value = permutation_p_value(first, second)
    assert p_value == pytest.approx(permutation_p_value(second, first)) == pytest.approx(1 / 210)


def test_many_runs_are_drawn_the_same_each_time_and_close_to_the_truth() -> None:
    generator = np.random.default_rng(8)
    same = list(generator.normal(0, 1, 50)), list(generator.normal(0, 1, 50))
    apart = same[0], [value + 1.5 for value in same[1]]
    assert permutation_p_value(*same) == permutation_p_value(*same) > 0.05
    assert 0 < permutation_p_value(*apart) < 0.001


def test_an_empty_side_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="0 and 1 runs"):
        permutation_p_value([], [1.0])


@pytest.mark.parametrize("sizes", [(2, 3), (4, 4), (5, 7), (9, 3)])
def test_exact_p_is_scipys(sizes: tuple[int, int]) -> None:
    generator = np.random.default_rng(sum(sizes))
    first, second = (list(generator.normal(side * 0.8, 1, size).round(1)) for side, size in enumerate(sizes))
    found = stats.permutation_test(
        (first, second), lambda one, two, axis: np.abs(one.mean(axis=axis) - two.mean(axis=axis)),
        vectorized=True, alternative="greater", n_resamples=np.inf,
    )  # fmt: skip
    assert permutation_p_value(first, second) == pytest.approx(found.pvalue, abs=1e-12)
