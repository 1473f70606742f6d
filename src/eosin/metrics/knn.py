"""Weighted nearest-neighbour classification of frozen embeddings."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eosin.metrics.matrix import Matrix, as_matrix

_BLOCK = 1024


def knn_votes(
    bank: npt.ArrayLike,
    bank_labels: npt.ArrayLike,
    queries: npt.ArrayLike,
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int,
) -> Matrix:
    """Shares of votes, [M, C]: of each class, by the k nearest in `bank` [N, D] of each of `queries` [M, D].

    Cosine similarity s; each neighbour votes for its class with weight exp(s / temperature) (Wu et al.
    2018, as DINO evaluates, Caron et al. 2021). With fewer than k in the bank all of them vote.
    Raises ValueError on labels that do not match the bank.
    """
    keys, asked = _unit(as_matrix(bank)), _unit(as_matrix(queries))
    labels = np.asarray(bank_labels, dtype=np.int64)
    if labels.shape != (len(keys),) or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"{labels.shape} labels for {len(keys)} embeddings of {num_classes} classes")
    one_hot = np.eye(num_classes)[labels]
    blocks = [
        _vote(asked[start : start + _BLOCK] @ keys.T, one_hot, min(k, len(keys)), temperature)
        for start in range(0, len(asked), _BLOCK)
    ]
    return np.concatenate(blocks)


def _vote(similarity: Matrix, one_hot: Matrix, k: int, temperature: float) -> Matrix:
    nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    top = np.take_along_axis(similarity, nearest, axis=1)
    # A shift by the largest similarity scales a query's votes alike, and cannot overflow.
    weights = np.exp((top - top.max(axis=1, keepdims=True)) / temperature)
    votes = np.einsum("mk,mkc->mc", weights, one_hot[nearest])
    return np.asarray(votes / votes.sum(axis=1, keepdims=True))


def _unit(matrix: Matrix) -> Matrix:
    return np.asarray(matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12))
