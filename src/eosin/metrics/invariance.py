"""Invariance: how little embeddings move when an image changes in a way that should not matter."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eosin.metrics.matrix import Matrix, as_matrix

_BLOCK = 2048


def agreement(original: npt.ArrayLike, changed: npt.ArrayLike) -> float:
    """Mean cosine of each embedding with that of its changed image, both centred on the originals' mean.

    [N, D] each, row by row. 1: nothing moved; 0: no more alike than two random patches. Centring is
    what makes a collapsed model score 0 and not 1.
    """
    first, second = _centred(original, changed)
    return float(np.mean(np.sum(first * second, axis=1)))


def retrieval(original: npt.ArrayLike, changed: npt.ArrayLike) -> float:
    """Share of changed images whose nearest original (centred cosine) is their own; chance is 1 / N.

    A tie with another original counts as a miss, so that equal embeddings find nothing.
    """
    first, second = _centred(original, changed)
    found = 0
    for start in range(0, len(first), _BLOCK):
        similarity = second[start : start + _BLOCK] @ first.T
        rows = np.arange(len(similarity))
        own = similarity[rows, start + rows].copy()
        similarity[rows, start + rows] = -np.inf
        found += int((own > similarity.max(axis=1) + 1e-9).sum())
    return found / len(first)


def _centred(original: npt.ArrayLike, changed: npt.ArrayLike) -> tuple[Matrix, Matrix]:
    """Unit rows of both, centred on the mean of `original`. Raises ValueError where shapes differ."""
    first, second = as_matrix(original, min_samples=2), as_matrix(changed, min_samples=2)
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} original embeddings, {second.shape} changed ones")
    mean = first.mean(axis=0)
    # What is left of equal float32 embeddings after centring is rounding, and no direction.
    floor = 1e-6 * max(float(np.linalg.norm(first, axis=1).max()), 1e-12)
    return _unit(first - mean, floor), _unit(second - mean, floor)


def _unit(matrix: Matrix, floor: float) -> Matrix:
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(np.where(norms > floor, matrix / np.maximum(norms, 1e-300), 0.0))
