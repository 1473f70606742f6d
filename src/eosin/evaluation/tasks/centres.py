"""Centres task: are a patch's neighbours of its tissue, or from its hospital?"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from eosin.errors import PermanentError, UserError
from eosin.evaluation.task import Task, TaskContext, TaskProtocol, TaskResult
from eosin.records import MetricValue
from eosin.records.details import CentresDetails

if TYPE_CHECKING:
    from eosin.evaluation.datasets.dataset import Dataset, Sample
    from eosin.evaluation.embeddings.embed import Features
    from eosin.metrics.embeddings import NeighbourCounts


class CentreTask(Task):
    """Do embeddings group by tissue or by where the slide was made? An index in the manner of PathoROB."""

    headline: ClassVar[tuple[str, ...]] = ("robustness_index",)

    kind: Literal["centres"]
    """Whether neighbours share tissue or centre."""
    dataset: str
    """URI of a CSV or Parquet table of images with the columns label (tissue) and centre."""
    k: int = Field(default=10, ge=1)
    """Neighbours that are looked at; those of the same patient are passed over."""

    def dataset_uri(self, run_uri: str) -> str:
        return self.dataset

    def protocol(self) -> TaskProtocol:
        return TaskProtocol("centres-neighbours", 1, hyperparameters={"k": self.k})

    def run(self, dataset: Dataset, context: TaskContext) -> TaskResult:
        """The robustness index over all patches, and at each magnification alone.

        Raises `UserError` where labels or centres are missing or all one, `PermanentError` where no neighbour
        tells anything.
        """
        embeddings = context.embed(dataset)
        rows = [i for i, row in enumerate(embeddings.rows.tolist()) if _is_known(dataset.samples[row])]
        samples = [dataset.samples[int(embeddings.rows[i])] for i in rows]
        features = embeddings.features[rows]
        _require_two(dataset, "label", {sample.label for sample in samples})
        _require_two(dataset, "centre", {sample.centre for sample in samples})
        found = _count(dataset, features, samples, self.k)
        if found.robustness_index is None:
            raise PermanentError(f"{dataset.uri}: no neighbour is of another class or another centre")
        cells = Counter((sample.label, sample.centre) for sample in samples)
        labels, centres = sorted({s.label for s in samples}), sorted({s.centre for s in samples})
        details = CentresDetails(
            **embeddings.told(),
            k=self.k,
            num_samples=len(samples),
            counts={label: {centre: cells[label, centre] for centre in centres} for label in labels},
            by_mpp=_by_mpp(self.k, dataset, features, samples),
            notes=tuple(_notes(labels, centres, cells, samples, len(embeddings.rows) - len(rows))),
        )
        metrics = {
            "robustness_index": MetricValue.of([found.robustness_index]),
            "same_class_neighbours": MetricValue.of([found.same_class]),
            "same_centre_neighbours": MetricValue.of([found.same_centre], higher_is_better=False),
        }
        return TaskResult(metrics, details, len(embeddings.rows))


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
    from eosin.metrics.embeddings import count_neighbours

    # Patches of one patient are alike for a third reason; without patients, a patch is its own group.
    groups = [sample.patient or f"\x1f{i}" for i, sample in enumerate(samples)]
    try:
        return count_neighbours(
            features, [s.label for s in samples], [s.centre for s in samples], groups=groups, k=k
        )
    except ValueError as error:
        raise PermanentError(f"the embeddings of {dataset.uri} cannot be compared: {error}") from error


def _notes(
    labels: list[str],
    centres: list[str],
    cells: Counter[tuple[str, str]],
    samples: list[Sample],
    num_unknown: int,
) -> list[str]:
    absent = [f"{label} from {centre}" for label in labels for centre in centres if not cells[label, centre]]
    notes = [f"no patch of {', '.join(absent)}: the index is lower or higher for it"] if absent else []
    if num_unknown:
        notes.append(f"{num_unknown} patch(es) without label or centre are left out")
    if not all(sample.patient for sample in samples):
        notes.append("not every patch has a patient: neighbours may be of the same one")
    return notes


def _by_mpp(
    k: int, dataset: Dataset, features: Features, samples: list[Sample]
) -> dict[str, dict[str, float]]:
    """At each magnification that has two patches or more; empty where there is only one."""
    found: dict[str, dict[str, float]] = {}
    for mpp in sorted({sample.mpp for sample in samples if sample.mpp is not None}):
        rows = [i for i, sample in enumerate(samples) if sample.mpp == mpp]
        part = [samples[i] for i in rows]
        if len({s.patient or i for i, s in enumerate(part)}) > 1:
            index = _count(dataset, features[rows], part, k).robustness_index
            found[f"{mpp:g}"] = {} if index is None else {"robustness_index": index}
    return found if len(found) > 1 else {}
