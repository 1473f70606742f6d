"""RankMe and the spectrum, against what linear algebra says they must be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosin.metrics.embeddings import RANKME_EPSILON, power_law_exponent, rankme, singular_values


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def _orthogonal(seed: int, size: int) -> np.ndarray:
    return np.linalg.qr(_normal(seed, size, size))[0]


@pytest.mark.parametrize(("num_samples", "num_features"), [(200, 33), (33, 200), (5, 5), (1, 9)])
def test_singular_values_are_those_of_an_svd(num_samples: int, num_features: int) -> None:
    x = _normal(3, num_samples, num_features)
    expected = np.linalg.svd(x, compute_uv=False)
    np.testing.assert_allclose(singular_values(x), expected, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("size", [2, 17, 64])
def test_rankme_of_orthonormal_embeddings_is_their_dimension(size: int) -> None:
    assert rankme(_orthogonal(1, size)) == pytest.approx(size, rel=1e-4)


def test_rankme_of_one_direction_is_one() -> None:
    direction = np.outer(_normal(5, 300), _normal(6, 48))
    assert rankme(direction) == pytest.approx(1.0, abs=1e-3)


def test_rankme_is_the_formula_with_its_epsilon() -> None:
    x = _normal(8, 40, 12)
    sigma = np.linalg.svd(x, compute_uv=False)
    p = sigma / np.abs(sigma).sum() + RANKME_EPSILON
    assert rankme(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)


def test_rankme_does_not_centre() -> None:
    x = _normal(8, 400, 12)
    assert rankme(x + 1000.0) < 2 < rankme(x)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3))
def test_rankme_does_not_change_with_rotation_scale_or_order(seed: int, scale: float) -> None:
    x = _normal(seed, 30, 8)
    other = scale * x[np.random.default_rng(seed).permutation(30)] @ _orthogonal(seed + 1, 8)
    assert rankme(other) == pytest.approx(rankme(x), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 99))
def test_rankme_lies_between_one_and_the_smaller_side(rows: int, columns: int, seed: int) -> None:
    value = rankme(_normal(seed, rows, columns))
    assert 1 - 1e-3 <= value <= min(rows, columns) * (1 + 1e-3)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((4, 3)), "all embeddings are zero"),
        (np.zeros((0, 3)), "non-empty"),
        (np.zeros(7), "non-empty"),
        (
            np.array([[1.0, 2.0], [np.nan, 0.0], [0.0, np.inf]]),
            "2 of 3 embeddings are not finite, first row 1",
        ),
    ],
)
def test_degenerate_embeddings_are_refused_in_words(x: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rankme(x)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
def test_power_law_exponent_is_read_from_a_power_law(alpha: float) -> None:
    sigma = np.arange(1, 101, dtype=float) ** (-alpha / 2)
    assert power_law_exponent(sigma) == pytest.approx(alpha, rel=1e-6)


def test_power_law_needs_two_values() -> None:
    with pytest.raises(ValueError, match="fewer than two"):
        power_law_exponent([3.0, 0.0, 0.0])
