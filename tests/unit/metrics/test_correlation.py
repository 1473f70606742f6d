"""ODCorr and its sample variant."""

import numpy as np
import pytest

from eosin.metrics import embeddings
from eosin.metrics.embeddings import num_constant_features, odcorr, odcorr_samples


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def _plain(x: np.ndarray) -> float:
    matrix = np.abs(np.corrcoef(x, rowvar=False))
    return float(matrix[~np.eye(len(matrix), dtype=bool)].mean())


@pytest.mark.parametrize("shape", [(50, 7), (7, 50), (2, 2), (300, 129)])
def test_it_is_the_mean_absolute_off_diagonal_correlation(shape: tuple[int, int]) -> None:
    x = _normal(4, *shape) @ _normal(5, shape[1], shape[1])
    assert odcorr(x) == pytest.approx(_plain(x), abs=1e-9)
    assert odcorr_samples(x) == pytest.approx(_plain(x.T), abs=1e-9)


def test_blocks_do_not_change_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    x = _normal(9, 61, 13)
    whole = odcorr_samples(x)
    monkeypatch.setattr(embeddings, "_BLOCK", 7)
    assert odcorr_samples(x) == pytest.approx(whole, abs=1e-12)


def test_copies_of_one_feature_are_fully_correlated() -> None:
    one = _normal(2, 90, 1)
    assert odcorr(np.hstack([one, -2 * one, one + 5])) == pytest.approx(1.0)


def test_independent_features_of_many_samples_are_hardly_correlated() -> None:
    assert odcorr(_normal(2, 20_000, 6)) < 0.02


def test_shift_and_scale_of_a_feature_change_nothing() -> None:
    x = _normal(3, 80, 5)
    assert odcorr(x * [1, 10, 0.1, -3, 7] + [0, 5, -2, 100, 1]) == pytest.approx(odcorr(x), abs=1e-9)


def test_a_constant_feature_is_left_out_and_counted() -> None:
    x = _normal(3, 80, 5)
    with_constant = np.hstack([x, np.full((80, 1), 0.1, dtype=np.float32)])
    assert odcorr(with_constant) == pytest.approx(odcorr(x), abs=1e-12)
    assert num_constant_features(with_constant) == 1


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.ones((5, 3)), "0 of 3 features vary"),
        (np.eye(4, 1), "1 of 1 features vary"),
        (np.ones((1, 3)), "at least 2 are needed"),
        (np.full((3, 2), np.nan), "not finite"),
    ],
)
def test_what_has_no_correlation_is_refused_in_words(x: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        odcorr(x)


def test_samples_without_spread_have_no_sample_correlation() -> None:
    with pytest.raises(ValueError, match="0 of 4 samples vary"):
        odcorr_samples(np.ones((4, 6)))
