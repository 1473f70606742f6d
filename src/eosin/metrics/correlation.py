"""Redundancy of embeddings: off-diagonal correlation, of features and of samples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eosin.metrics.matrix import Matrix, as_matrix

_BLOCK = 2048


def num_constant_features(embeddings: npt.ArrayLike) -> int:
    """Features that have one value over all samples; their correlation is undefined."""
    return int((~_varying(as_matrix(embeddings))).sum())


def odcorr(embeddings: npt.ArrayLike) -> float:
    """ODCorr: mean absolute off-diagonal entry of the D × D feature correlation matrix over N samples.

    In [0, 1], lower is better. The quantity of arXiv 2404.15217, whose exact equation is not given
    there; this is our definition. Constant features are left out. Raises ValueError with fewer than two
    samples or fewer than two features that vary.
    """
    matrix = as_matrix(embeddings, min_samples=2)
    varying = matrix[:, _varying(matrix)]
    if varying.shape[1] < 2:
        raise ValueError(f"{varying.shape[1]} of {matrix.shape[1]} features vary; correlation needs two")
    return _mean_abs_off_diagonal(varying.T)


def odcorr_samples(embeddings: npt.ArrayLike) -> float:
    """The same of the N × N sample correlation matrix over D features: how alike any two samples look.

    Not ODCorr, and reported under its own name. Samples whose features are all equal are left out.
    Raises ValueError with fewer than two features or fewer than two samples left.
    """
    matrix = as_matrix(embeddings)
    if matrix.shape[1] < 2:
        raise ValueError("sample correlation needs at least two features")
    varying = matrix[_varying(matrix.T)]
    if len(varying) < 2:
        raise ValueError(f"{len(varying)} of {len(matrix)} samples vary over their features; two are needed")
    return _mean_abs_off_diagonal(varying)


def _varying(matrix: Matrix) -> npt.NDArray[np.bool_]:
    """Columns whose spread is more than the rounding of float32 embeddings."""
    scale = np.abs(matrix).max(axis=0)
    return np.asarray(matrix.std(axis=0) > 1e-6 * scale)


def _mean_abs_off_diagonal(variables: Matrix) -> float:
    """Over the correlation matrix of the rows of `variables` [V, N], a block of rows at a time."""
    centred = variables - variables.mean(axis=1, keepdims=True)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    total = 0.0
    for start in range(0, len(unit), _BLOCK):
        total += float(np.abs(np.clip(unit[start : start + _BLOCK] @ unit.T, -1.0, 1.0)).sum())
    size = len(unit)
    return min(1.0, max(0.0, (total - size) / (size * (size - 1))))
