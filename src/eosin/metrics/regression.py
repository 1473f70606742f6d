"""Regression on embeddings: ridge after PCA with its correlation, Cox with the concordance index."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats
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
    found = np.where(np.ptp(truth, axis=0) > 0, 0.0, np.nan)
    for g in np.flatnonzero((found == 0) & (np.ptp(predicted, axis=0) > 0)):
        found[g] = stats.pearsonr(truth[:, g], predicted[:, g]).statistic
    return found


Flags = npt.NDArray[np.bool_]
# Until risks stand to five digits, not until the loss hardly changes.
_TO_THE_END = {"maxiter": 5_000, "maxfun": 10_000, "gtol": 1e-8, "ftol": 1e-15}


def fit_cox(features: Matrix, times: Matrix, events: Flags, *, penalty: float) -> Callable[[Matrix], Matrix]:
    """The log risk [M] of features [M, D] by Cox's model of [N, D], fitted with λ = `penalty`.

    Least mean negative log partial likelihood (Cox 1972; Breslow's for equal times) over the events, plus
    λ/2·‖β‖² of features standardised on what is learnt from. `times` [N], `events` [N]: whether it was seen.
    """
    mean, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.where(spread > 1e-12, spread, 1.0)
    order = np.argsort(-times, kind="stable")
    x, time, seen = ((features - mean) / scale)[order], times[order], events[order]
    # Of each, the last that is still at risk with it: equal times share a risk set.
    last = np.searchsorted(-time, -time, side="right") - 1
    count = max(1, int(seen.sum()))

    def loss(beta: Matrix) -> tuple[float, Matrix]:
        eta = x @ beta
        weight = np.exp(eta - eta.max())
        total, weighted = np.cumsum(weight)[last], np.cumsum(weight[:, None] * x, axis=0)[last]
        value = (np.log(total) + eta.max() - eta)[seen].sum() / count
        slope = (weighted / total[:, None] - x)[seen].sum(axis=0) / count
        return float(value + penalty / 2 * beta @ beta), slope + penalty * beta

    start = np.zeros(x.shape[1])
    beta = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=_TO_THE_END).x
    return lambda asked: np.asarray((asked - mean) / scale @ beta)


def concordance_index(times: Matrix, events: Flags, risk: Matrix) -> float:
    """Harrell's C: the share of comparable pairs in which the earlier event has the higher risk.

    A pair is comparable where the earlier of two times is an event (at equal times: where one alone is);
    equal risks count half. nan where no pair is.
    """
    earlier = (times[:, None] < times) | ((times[:, None] == times) & ~events)
    comparable = events[:, None] & earlier
    if not comparable.any():
        return float("nan")
    higher = (risk[:, None] > risk) + 0.5 * (risk[:, None] == risk)
    return float(higher[comparable].mean())
