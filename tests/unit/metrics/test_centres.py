"""The robustness index where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from eosin.metrics.embeddings import count_neighbours

CLASSES = ["tumour", "tumour", "stroma", "stroma"] * 5
CENTRES = ["a", "b"] * 10


def _embeddings(by: list[str], noise: float = 0.01) -> np.ndarray:  # type: ignore[type-arg]
    directions = {name: np.eye(2)[i] for i, name in enumerate(sorted(set(by)))}
    random = np.random.default_rng(3)
    return np.array([directions[name] for name in by]) + random.normal(0, noise, (len(by), 2))


def test_neighbours_by_tissue_give_one_and_by_centre_give_nought() -> None:
    tissue = count_neighbours(_embeddings(CLASSES), CLASSES, CENTRES, k=5)
    assert tissue.robustness_index == 1.0
    assert tissue.same_class == 1.0
    assert 0.3 < tissue.same_centre < 0.7
    centre = count_neighbours(_embeddings(CENTRES), CLASSES, CENTRES, k=5)
    assert centre.robustness_index == 0.0
    assert centre.same_centre == 1.0


def test_embeddings_that_know_nothing_stand_between() -> None:
    random = np.random.default_rng(0).normal(size=(400, 16))
    counts = count_neighbours(random, CLASSES * 20, CENTRES * 20, k=10)
    assert counts.robustness_index == pytest.approx(0.5, abs=0.05)
    assert counts.total == 4000


def test_neighbours_of_the_same_patient_are_passed_over() -> None:
    # Each patient has one class and one centre, and its patches are equal.
    patients = [f"p{i // 2}" for i in range(8)]
    classes = ["t", "t", "t", "t", "s", "s", "s", "s"]
    centres = ["a", "a", "b", "b", "a", "a", "b", "b"]
    points = np.repeat([[1, 0.0], [1, 0.3], [0, 1.0], [0.3, 1]], 2, axis=0)
    assert count_neighbours(points, classes, centres, k=1).robustness_index is None
    counts = count_neighbours(points, classes, centres, groups=patients, k=2)
    assert (counts.same_class_other_centre, counts.total) == (16, 16)


def test_fewer_others_than_k_are_all_counted() -> None:
    counts = count_neighbours(np.eye(3), ["a", "a", "b"], ["x", "y", "x"], k=10)
    assert counts.total == 6


@pytest.mark.parametrize(
    ("groups", "message"), [(["p", "p", "p"], "outside its own group"), (["p"], "classes")]
)
def test_what_cannot_be_compared_is_refused(groups: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count_neighbours(np.eye(3), ["a", "a", "b"], ["x", "y", "x"], groups=groups, k=1)
