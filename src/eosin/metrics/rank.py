"""Effective rank of embeddings: singular values and RankMe."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eosin.metrics.matrix import Matrix, as_matrix

RANKME_EPSILON = 1e-7


def singular_values(embeddings: npt.ArrayLike) -> Matrix:
    """Singular values of the uncentred [N, D] matrix, largest first, float64 [min(N, D)].

    Square roots of the eigenvalues of the smaller float64 Gram matrix: exact to about 1e-8 of the
    largest, below the ε of RankMe, and 20 times faster than an SVD of 25,600 × 1536.
    """
    matrix = as_matrix(embeddings)
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    return np.asarray(np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0.0, None))[::-1])


def rankme(embeddings: npt.ArrayLike) -> float:
    """RankMe of [N, D] embeddings: the exponential of the entropy of their normalised singular values.

    exp(−Σ p log p) with p = σ / Σσ + 1e-7 and no centring (Garrido et al., "RankMe", ICML 2023, eq. 1).
    Between 1 and min(N, D), give or take ε; comparable only at equal N and D. Raises ValueError on
    embeddings that are all zero.
    """
    values = singular_values(embeddings)
    total = values.sum()
    if total == 0:
        raise ValueError("all embeddings are zero")
    p = values / total + RANKME_EPSILON
    return float(np.exp(-np.sum(p * np.log(p))))


def power_law_exponent(values: npt.ArrayLike) -> float:
    """α of σ_i² ∝ i^−α by least squares in log-log over all positive values (α-ReQ, Agrawal et al. 2022).

    `values`: singular values, largest first. Raises ValueError with fewer than two positive ones.
    """
    sigma = np.asarray(values, dtype=np.float64)
    sigma = sigma[sigma > sigma.max(initial=0.0) * 1e-7]
    if len(sigma) < 2:
        raise ValueError("the spectrum has fewer than two positive singular values")
    slope = np.polyfit(np.log(np.arange(1, len(sigma) + 1)), 2 * np.log(sigma), 1)[0]
    return float(-slope)
