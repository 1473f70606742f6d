"""Figures of regression on embeddings: Pearson's correlation after PCA and ridge."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eosin.metrics.embeddings import as_matrix
from eosin.metrics.group_counts import Matrix

_NUM_COMPONENTS, _STRENGTH, _SEED = 256, 100, 1


def ridge_correlations(
    features: npt.ArrayLike, targets: Matrix, asked: npt.ArrayLike, truth: Matrix
) -> Matrix:
    """Of each target [G], the correlation of predicted and true values; nan where the true ones are constant,
    0 where the predicted ones are.

    Features [N, D] are standardised and brought to 256 principal components (fewer where there are fewer);
    ridge without an intercept and α = 100 / (components · G) learns `targets` [N, G] and is asked for `truth`
    [M, G], as in HEST-Bench (Jaume et al., NeurIPS 2024; mahmoodlab/HEST at afd42c3). Raises ValueError where
    a feature is not finite.
    """
    known, new = (as_matrix(each).astype(np.asarray(each).dtype) for each in (features, asked))
    num = min(_NUM_COMPONENTS, *known.shape)
    pipe = make_pipeline(StandardScaler(), PCA(num, random_state=_SEED))
    # As there in float32: its code hands the components on as tensors.
    x, x_new = pipe.fit_transform(known).astype(np.float32), pipe.transform(new).astype(np.float32)
    alpha = _STRENGTH / (num * targets.shape[1])
    model = Ridge(alpha, solver="lsqr", fit_intercept=False, max_iter=1_000, random_state=0).fit(x, targets)
    predicted = model.predict(x_new).reshape(truth.shape)
    found = np.where(truth.std(axis=0) > 0, 0.0, np.nan)
    for g in np.flatnonzero((found == 0) & (predicted.std(axis=0) > 0)):
        found[g] = stats.pearsonr(truth[:, g], predicted[:, g]).statistic
    return found
