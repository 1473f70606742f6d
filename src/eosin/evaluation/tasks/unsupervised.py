"""Figures that need no labels: RankMe, ODCorr, the spectrum."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from eosin.errors import PermanentError
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.embeddings.embed import Embeddings, Features
from eosin.evaluation.tasks.outcome import Outcome
from eosin.metrics.correlation import num_constant_features, odcorr, odcorr_samples
from eosin.metrics.rank import power_law_exponent, rankme, singular_values
from eosin.records import MetricValue

_SPECTRUM_POINTS = 64


def run_unsupervised(dataset: Dataset, embeddings: Embeddings) -> Outcome:
    """RankMe (uncentred), ODCorr of features and of samples; also at each magnification alone.

    Raises `PermanentError` where they are not defined: fewer than two samples, features that do not vary.
    """
    features = embeddings.features
    try:
        metrics = {
            "rankme": MetricValue.of([rankme(features)]),
            "odcorr": MetricValue.of([odcorr(features)], higher_is_better=False),
            "odcorr_samples": MetricValue.of([odcorr_samples(features)], higher_is_better=False),
        }
    except ValueError as error:
        raise PermanentError(f"the embeddings of {dataset.uri} cannot be measured: {error}") from error
    details = {
        "num_samples": features.shape[0],
        "num_features": features.shape[1],
        "centred": False,
        "constant_features": num_constant_features(features),
        "spectrum": _spectrum(features),
        "by_mpp": _by_mpp(dataset, embeddings),
    }
    return Outcome(metrics, details)


def _spectrum(features: Features) -> dict[str, Any]:
    """Singular values over their largest, at up to 64 log-spaced ranks (counted from 1), and α."""
    values = singular_values(features)
    ranks = np.unique(np.geomspace(1, len(values), _SPECTRUM_POINTS).round().astype(int))
    relative = values[ranks - 1] / values[0]
    try:
        alpha: float | None = power_law_exponent(values)
    except ValueError:
        alpha = None
    return {"rank": ranks.tolist(), "relative": [float(f"{v:.6g}") for v in relative], "alpha": alpha}


def _by_mpp(dataset: Dataset, embeddings: Embeddings) -> dict[str, dict[str, float]]:
    """The figures of each magnification, where the patches have more than one."""
    rows: dict[float, list[int]] = defaultdict(list)
    for i, row in enumerate(embeddings.rows):
        mpp = dataset.samples[row].mpp
        if mpp is not None:
            rows[mpp].append(i)
    if len(rows) < 2:
        return {}
    return {f"{mpp:g}": _figures(embeddings.features[rows[mpp]]) for mpp in sorted(rows)}


def _figures(features: Features) -> dict[str, float]:
    figures: dict[str, float] = {"num_samples": len(features)}
    for name, measure in (("rankme", rankme), ("odcorr", odcorr)):
        try:
            figures[name] = measure(features)
        except ValueError:  # too few patches at this magnification: the figure is left out
            continue
    return figures
