"""PLISM's and HEST-Bench's figures, equal to those of their own code on made data.

Golden values: benchmarks/peers/robustness_golden.py.
"""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from eosin.metrics.embeddings import registered_figures
from eosin.metrics.regression import ridge_correlations
from tests.support.robustness import made_expression, made_slides

GOLDEN = json.loads((Path(__file__).parents[2] / "data" / "golden" / "robustness.json").read_text())


def test_cosine_and_top_k_of_registered_slides_are_plisms() -> None:
    slides = made_slides()
    assert len(GOLDEN["plism"]["pairs"]) == 15
    for (a, b), wanted in zip(combinations(slides, 2), GOLDEN["plism"]["pairs"], strict=True):
        assert (*a, *b) == tuple(wanted[:4])
        found = registered_figures(slides[a], slides[b], (1, 3, 5, 10))
        assert list(found.values()) == pytest.approx(wanted[4:], abs=1e-6)


def test_a_slide_and_itself_agree_and_noise_does_not() -> None:
    random = np.random.default_rng(4)
    first, other = random.normal(size=(2, 200, 16))
    same = registered_figures(first, first, (1, 10))
    assert same == pytest.approx({"cosine_similarity": 1.0, "top1_accuracy": 1.0, "top10_accuracy": 1.0})
    none = registered_figures(first, other, (1, 10))
    assert abs(none["cosine_similarity"]) < 0.1 and none["top10_accuracy"] < 0.1


def test_correlations_of_expression_are_hest_benchs() -> None:
    x_train, x_test, y_train, y_test = made_expression()
    found = ridge_correlations(x_train, y_train, x_test, y_test)
    wanted = [each["pearson_corr"] for each in GOLDEN["hest"]["pearson_corrs"]]
    # Its least squares are iterated in float32: from one processor's rounding to another's lie 3e-6.
    assert found == pytest.approx(wanted, abs=2e-5)
    assert float(found.mean()) == pytest.approx(GOLDEN["hest"]["pearson_mean"], abs=2e-5)


def test_what_does_not_vary_has_no_correlation_and_what_is_not_told_apart_has_none_of_it() -> None:
    x_train, x_test, y_train, y_test = made_expression()
    y_test[:, 2] = 1.0
    assert np.isnan(ridge_correlations(x_train, y_train, x_test, y_test)).tolist() == [
        i == 2 for i in range(5)
    ]
    collapsed = ridge_correlations(x_train * 0 + 1, y_train, x_test * 0 + 1, y_test)
    assert np.nan_to_num(collapsed, nan=7).tolist() == [0, 0, 7, 0, 0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [33, 40, 97])
def test_a_gene_of_one_value_has_none_whatever_its_mean_rounds_to(count: int) -> None:
    random = np.random.default_rng(0)
    truth = np.stack([random.normal(size=count), np.full(count, np.log1p(3.0))], axis=1)
    features, targets, asked = (random.normal(size=size) for size in ((50, 8), (50, 2), (count, 8)))
    found = ridge_correlations(features, targets, asked, truth)
    assert np.isfinite(found[0]) and np.isnan(found[1])
