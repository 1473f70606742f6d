"""The one check every metric of embeddings begins with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def as_matrix(embeddings: npt.ArrayLike, *, min_samples: int = 1) -> Matrix:
    """`embeddings` [N, D] as float64.

    Raises ValueError where it is not two-dimensional, is empty, has fewer than `min_samples` rows, or
    holds a value that is not finite.
    """
    matrix = np.asarray(embeddings, dtype=np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"embeddings must be a non-empty [samples, features] matrix, not {matrix.shape}")
    if len(matrix) < min_samples:
        raise ValueError(f"{len(matrix)} sample(s), at least {min_samples} are needed")
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(bad):
        raise ValueError(f"{len(bad)} of {len(matrix)} embeddings are not finite, first row {bad[0]}")
    return matrix
