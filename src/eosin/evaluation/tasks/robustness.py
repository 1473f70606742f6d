"""Robustness: do embeddings stay when orientation, stain or sharpness changes and tissue does not?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from eosin.errors import PermanentError
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.embeddings.embed import Embeddings
from eosin.evaluation.tasks.outcome import Outcome
from eosin.metrics.invariance import agreement, retrieval
from eosin.records import MetricValue


def run_robustness(dataset: Dataset, embeddings: Embeddings, changed: Mapping[str, Embeddings]) -> Outcome:
    """For each change: how often a changed patch is found again among all patches, and how far it moved.

    Raises `PermanentError` where there are fewer than two patches.
    """
    metrics: dict[str, MetricValue] = {}
    by_mpp: dict[str, dict[str, float]] = defaultdict(dict)
    try:
        for name, other in changed.items():
            metrics[f"{name}_retrieval"] = MetricValue.of([retrieval(embeddings.features, other.features)])
            metrics[f"{name}_agreement"] = MetricValue.of([agreement(embeddings.features, other.features)])
    except ValueError as error:
        raise PermanentError(f"the embeddings of {dataset.uri} cannot be compared: {error}") from error
    for mpp, rows in _rows_by_mpp(dataset, embeddings).items():
        for name, other in changed.items():
            by_mpp[mpp][f"{name}_retrieval"] = retrieval(embeddings.features[rows], other.features[rows])
    details: dict[str, Any] = {"num_samples": len(embeddings.rows), "retrieval_by_mpp": dict(by_mpp)}
    return Outcome(metrics, details)


def _rows_by_mpp(dataset: Dataset, embeddings: Embeddings) -> dict[str, list[int]]:
    """Rows of each magnification that has two patches or more; empty where there is only one."""
    rows: dict[float, list[int]] = defaultdict(list)
    for i, row in enumerate(np.asarray(embeddings.rows).tolist()):
        mpp = dataset.samples[row].mpp
        if mpp is not None:
            rows[mpp].append(i)
    return {f"{mpp:g}": rows[mpp] for mpp in sorted(rows) if len(rows[mpp]) > 1} if len(rows) > 1 else {}
