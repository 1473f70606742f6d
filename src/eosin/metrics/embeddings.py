"""Figures of embeddings without training: effective rank, correlation, invariance, neighbours."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import softmax
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from eosin.metrics.group_counts import Matrix
from eosin.words import counted

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
        raise ValueError(f"{counted(len(matrix), 'sample')}, at least {min_samples} are needed")
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(bad):
        raise ValueError(f"{len(bad)} of {len(matrix)} embeddings are not finite, first row {bad[0]}")
    return matrix


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


Registered = dict[str, float]
"""Figures of two registered slides, by name."""


def registered_figures(
    first: npt.NDArray[np.floating], second: npt.NDArray[np.floating], top_k: Sequence[int]
) -> Registered:
    """Mean cosine of rows [N, D] of the same tissue, and how often it is among the k nearest of all others.

    The others are 2N − 1, and the figures means of both directions, as in PLISM's benchmark (Filiot et al.,
    arXiv 2501.16239; owkin/plism-benchmark at 8ec152a, in float16, where this is float32). An equally near
    patch does not stand before the same tissue. Raises ValueError where a row is not finite.
    """
    one, two = (normalize(as_matrix(each).astype(np.float32)) for each in (first, second))
    own = (one * two).sum(axis=1)
    both = np.concatenate([one, two])
    ranks = np.empty(len(both), dtype=np.int64)
    for start in range(0, len(both), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(both)))
        similarity = both[rows] @ both.T
        similarity[np.arange(len(rows)), rows] = -np.inf
        ranks[rows] = (similarity > own[rows % len(one), None] + 1e-6).sum(axis=1)
    accuracies = {f"top{k}_accuracy": float((ranks < k).mean()) for k in top_k}
    return {"cosine_similarity": float(own.mean()), **accuracies}


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
    2018, as DINO evaluates, Caron et al. 2021), by scikit-learn. With fewer than k in the bank all of them
    vote. Raises ValueError on labels that do not match the bank.
    """
    keys, labels = as_matrix(bank), np.asarray(bank_labels, dtype=np.int64)
    if labels.shape != (len(keys),) or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"{labels.shape} labels for {len(keys)} embeddings of {num_classes} classes")

    def weights(distances: Matrix) -> Matrix:
        # A shift by the smallest distance scales a query's votes alike, and keeps one of them at 1.
        return np.asarray(np.exp((distances.min(axis=1, keepdims=True) - distances) / temperature))

    voters = KNeighborsClassifier(min(k, len(keys)), metric="cosine", weights=weights).fit(keys, labels)
    votes = np.zeros((len(as_matrix(queries)), num_classes))
    votes[:, voters.classes_] = voters.predict_proba(as_matrix(queries))
    return votes


def simple_shot(
    bank: npt.ArrayLike, bank_labels: npt.ArrayLike, queries: npt.ArrayLike, *, shots: int, seed: int
) -> Matrix:
    """Chances [M, C] of each class for `queries` [M, D], from so many drawn samples of each class in `bank`.

    SimpleShot with centring and L2 normalisation (Wang et al. 2019, CL2N): the nearest class mean, centred on
    the mean of all of `bank`; chances are the softmax of the negative squared distances. Raises ValueError
    where a class has fewer samples.
    """
    keys, labels, asked = as_matrix(bank), np.asarray(bank_labels, dtype=np.int64), as_matrix(queries)
    generator, mean = np.random.default_rng(seed), keys.mean(axis=0)
    keys, asked = (normalize(each - mean) for each in (keys, asked))
    drawn = [generator.choice(np.flatnonzero(labels == c), shots, replace=False) for c in np.unique(labels)]
    means = np.stack([keys[rows].mean(axis=0) for rows in drawn])
    return np.asarray(softmax(-euclidean_distances(asked, means, squared=True), axis=1))


def retrieval_hits(
    embeddings: npt.ArrayLike, classes: npt.ArrayLike, *, groups: Sequence[str], k: int
) -> tuple[Labels, npt.NDArray[np.bool_]]:
    """Classes [N, k] of each sample's nearest by cosine outside of its group, and whether each is its own.

    Raises ValueError where a sample has fewer than k others.
    """
    unit, labels = normalize(as_matrix(embeddings, min_samples=2)), np.asarray(classes, dtype=np.int64)
    _, own = np.unique(np.asarray(groups), return_inverse=True)
    fewest = len(labels) - int(np.bincount(own).max())
    if fewest < k:
        raise ValueError(f"an image has {fewest} of other patients beside it, {k} are needed")
    votes = labels[np.concatenate([nearest for _, nearest, _ in nearest_of_others(unit, own, k)])]
    return votes, votes == labels[:, None]


def retrieval_figures(votes: Labels, hits: npt.NDArray[np.bool_], classes: Labels) -> dict[str, Matrix]:
    """Of each sample: average precision at k, and whether the first and the majority are of its class.

    Average precision is over the hits among the k; a tie of the majority goes to the nearer class.
    """
    k = votes.shape[1]
    precision = np.cumsum(hits, axis=1) / np.arange(1, k + 1)
    average = (precision * hits).sum(axis=1) / np.maximum(hits.sum(axis=1), 1)
    winner = [max(row.tolist(), key=row.tolist().count) for row in votes]
    majority = np.asarray(winner) == classes
    return {"map_at_k": average, "top1": hits[:, 0].astype(float), "majority_vote": majority.astype(float)}


def nearest_of_others(
    unit: Matrix, own: Labels, k: int
) -> Iterator[tuple[int, Labels, npt.NDArray[np.bool_]]]:
    """Blocks of rows, by the first: their k nearest [n, k] in order, and which are of another group."""
    for start in range(0, len(unit), _BLOCK):
        similarity = unit[start : start + _BLOCK] @ unit.T
        similarity[own[start : start + _BLOCK, None] == own[None, :]] = -np.inf
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(similarity, nearest, axis=1), axis=1, kind="stable")
        nearest = np.take_along_axis(nearest, order, axis=1)
        yield start, nearest, np.isfinite(np.take_along_axis(similarity, nearest, axis=1))
