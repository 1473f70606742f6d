"""Survival: Cox regression with a ridge, and the concordance index."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import optimize

from eosin.metrics.group_counts import Matrix

Flags = npt.NDArray[np.bool_]


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
    beta = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 2_000}).x
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
