"""Retrieval task: are a patch's or slide's nearest neighbours, of other patients, of its class?"""

from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field

from eosin.errors import PermanentError, UserError
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.task import LabelledImagesTask, TaskContext, TaskProtocol, TaskResult
from eosin.records import MetricValue
from eosin.words import counted


class RetrievalTask(LabelledImagesTask):
    """Every labelled image asks all those of other patients; nothing is trained and no split is used."""

    headline: ClassVar[tuple[str, ...]] = ("map_at_k", "majority_vote")

    kind: Literal["retrieval"]
    """Search among the labelled images themselves."""
    k: int = Field(default=5, ge=1)
    """Neighbours that are looked at."""

    def protocol(self) -> TaskProtocol:
        return TaskProtocol("retrieval-leave-one-patient-out", 1, hyperparameters={"k": self.k})

    def run(self, dataset: Dataset, context: TaskContext) -> TaskResult:
        """mAP@k, accuracy of the first and of the majority of k. Raises `UserError` or `PermanentError`."""
        import numpy as np

        from eosin.evaluation.labelled import label_names
        from eosin.metrics.embeddings import retrieval_figures, retrieval_hits
        from eosin.metrics.intervals import interval_over, interval_without
        from eosin.records.details import Details

        embeddings, names = context.embed(dataset), label_names(dataset)
        rows = [i for i, row in enumerate(embeddings.rows.tolist()) if dataset.samples[row].label]
        samples = [dataset.samples[int(embeddings.rows[i])] for i in rows]
        classes = np.array([names.index(sample.label) for sample in samples])
        if len({*classes.tolist()}) < 2:
            raise UserError(f"{dataset.uri}: its readable images are of one class: nothing to tell apart")
        groups = [sample.patient or sample.source for sample in samples]
        try:
            votes, hits = retrieval_hits(embeddings.features[rows], classes, groups=groups, k=self.k)
        except ValueError as error:
            raise PermanentError(f"{dataset.uri}: {error}") from error
        by_patient = all(sample.patient for sample in samples)
        metrics, intervals = {}, {}
        for name, each in retrieval_figures(votes, hits, classes).items():
            metrics[name] = MetricValue.of([float(each.mean())])
            found = interval_without(partial(_mean_of, each), groups, len(groups))
            if found:
                intervals[name] = (found.low, found.high)
        unknown = sum(not sample.patient for sample in samples)
        details = Details(
            **embeddings.told(),
            intervals=intervals,
            interval_over=interval_over(len(set(groups)), "patients" if by_patient else "images"),
            notes=(f"{counted(unknown, 'image')} without a patient: neighbours may be of the same one",)
            if unknown
            else (),
        )
        return TaskResult(metrics, details, len(embeddings.rows))


def _mean_of(values: Any, kept: Any) -> float:
    return float(values[kept].mean())
