"""Weighted nearest neighbours against a slow, obvious version."""

import numpy as np
import pytest

from eosin.metrics.embeddings import knn_votes


def _slow(
    bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int, temperature: float, num_classes: int
) -> list[int]:
    predictions = []
    for query in queries:
        cosine = [float(key @ query / np.linalg.norm(key) / np.linalg.norm(query)) for key in bank]
        nearest = sorted(range(len(bank)), key=lambda i: -cosine[i])[:k]
        votes = [0.0] * num_classes
        for i in nearest:
            votes[labels[i]] += np.exp(cosine[i] / temperature)
        predictions.append(int(np.argmax(votes)))
    return predictions


@pytest.mark.parametrize("k", [1, 3, 20, 500])
def test_it_votes_as_the_definition_says(k: int) -> None:
    generator = np.random.default_rng(k)
    bank, queries = generator.standard_normal((60, 9)), generator.standard_normal((37, 9))
    labels = generator.integers(0, 4, 60)
    got = knn_votes(bank, labels, queries, k=k, temperature=0.07, num_classes=4)
    assert got.argmax(axis=1).tolist() == _slow(bank, labels, queries, k, 0.07, 4)


def test_length_of_an_embedding_does_not_matter() -> None:
    bank = np.array([[1.0, 0.0], [0.0, 1.0]])
    queries = np.array([[1e-3, 0.0], [0.0, 1e6]])
    assert knn_votes(bank, [0, 1], queries, k=1, num_classes=2).argmax(axis=1).tolist() == [0, 1]


def test_a_near_neighbour_outweighs_two_far_ones() -> None:
    bank = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert knn_votes(bank, [0, 1, 1], [[1.0, 0.2]], k=3, temperature=0.07, num_classes=2).argmax(
        axis=1
    ).tolist() == [0]


def test_a_tiny_temperature_does_not_overflow() -> None:
    bank = np.eye(3)
    assert knn_votes(bank, [2, 1, 0], bank, k=3, temperature=1e-4, num_classes=3).argmax(axis=1).tolist() == [
        2,
        1,
        0,
    ]


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 5], [0, -1, 1]])
def test_labels_that_do_not_match_the_bank_are_refused(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="labels for 3 embeddings"):
        knn_votes(np.eye(3), labels, np.eye(3), num_classes=2)
