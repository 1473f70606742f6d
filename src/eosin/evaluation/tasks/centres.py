"""The centres task: are a patch's neighbours of its tissue, or from its hospital?"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from eosin.config.evaluate import CentreTask
from eosin.errors import PermanentError, UserError
from eosin.evaluation.datasets.dataset import Dataset, Sample
from eosin.evaluation.embeddings.embed import Embeddings, Features
from eosin.evaluation.tasks.outcome import Outcome
from eosin.metrics.centres import NeighbourCounts, count_neighbours
from eosin.records import MetricValue


def run_centres(task: CentreTask, dataset: Dataset, embeddings: Embeddings) -> Outcome:
    """The robustness index over all patches, and at each magnification alone.

    Raises `UserError` where labels or centres are missing or all one, `PermanentError` where no neighbour
    tells anything.
    """
    rows = [i for i, row in enumerate(embeddings.rows.tolist()) if _is_known(dataset.samples[row])]
    samples = [dataset.samples[int(embeddings.rows[i])] for i in rows]
    features = embeddings.features[rows]
    _require_two(dataset, "label", {sample.label for sample in samples})
    _require_two(dataset, "centre", {sample.centre for sample in samples})
    found = _count(dataset, features, samples, task.k)
    index = found.robustness_index
    if index is None:
        raise PermanentError(f"{dataset.uri}: no neighbour is of another class or another centre")
    metrics = {
        "robustness_index": MetricValue.of([index]),
        "same_class_neighbours": MetricValue.of([found.same_class]),
        "same_centre_neighbours": MetricValue.of([found.same_centre], higher_is_better=False),
    }
    return Outcome(metrics, _details(task, dataset, features, samples, len(embeddings.rows) - len(rows)))


def _is_known(sample: Sample) -> bool:
    return bool(sample.label and sample.centre)


def _require_two(dataset: Dataset, column: str, names: set[str]) -> None:
    if len(names) < 2:
        found = ", ".join(names) or "none"
        raise UserError(
            f"{dataset.uri} has {len(names)} {column}(s) ({found}); two are needed",
            hint="give a table with the columns path, label and centre",
        )


def _count(dataset: Dataset, features: Features, samples: list[Sample], k: int) -> NeighbourCounts:
    # Patches of one patient are alike for a third reason; without patients, a patch is its own group.
    groups = [sample.patient or f"\x1f{i}" for i, sample in enumerate(samples)]
    try:
        return count_neighbours(
            features, [s.label for s in samples], [s.centre for s in samples], groups=groups, k=k
        )
    except ValueError as error:
        raise PermanentError(f"the embeddings of {dataset.uri} cannot be compared: {error}") from error


def _details(
    task: CentreTask, dataset: Dataset, features: Features, samples: list[Sample], num_unknown: int
) -> dict[str, Any]:
    cells = Counter((sample.label, sample.centre) for sample in samples)
    labels, centres = sorted({s.label for s in samples}), sorted({s.centre for s in samples})
    absent = [f"{label} from {centre}" for label in labels for centre in centres if not cells[label, centre]]
    notes = [f"no patch of {', '.join(absent)}: the index is lower or higher for it"] if absent else []
    if num_unknown:
        notes.append(f"{num_unknown} patch(es) without label or centre are left out")
    if not all(sample.patient for sample in samples):
        notes.append("not every patch has a patient: neighbours may be of the same one")
    return {
        "k": task.k,
        "num_samples": len(samples),
        "counts": {label: {centre: cells[label, centre] for centre in centres} for label in labels},
        "robustness_index_by_mpp": _by_mpp(task, dataset, features, samples),
        "notes": notes,
    }


def _by_mpp(
    task: CentreTask, dataset: Dataset, features: Features, samples: list[Sample]
) -> dict[str, float | None]:
    """At each magnification that has two patches or more; empty where there is only one."""
    values = np.array([np.nan if sample.mpp is None else sample.mpp for sample in samples])
    found = {}
    for mpp in np.unique(values[np.isfinite(values)]).tolist():
        rows = np.flatnonzero(values == mpp)
        part = [samples[i] for i in rows]
        if len({s.patient or i for i, s in enumerate(part)}) > 1:
            found[f"{mpp:g}"] = _count(dataset, features[rows], part, task.k).robustness_index
    return found if len(found) > 1 else {}
