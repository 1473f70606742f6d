"""Survival task: a Cox model on pooled slide embeddings, judged by the concordance index."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.task import TaskContext, TaskProtocol, TaskResult
from eosin.evaluation.tasks.slide import SlidePatchesTask
from eosin.records import MetricValue
from eosin.records.details import Details, LeftOut
from eosin.words import counted

if TYPE_CHECKING:
    from eosin.evaluation.datasets.slide_dataset import SlideDataset


class SurvivalTask(SlidePatchesTask):
    """Cox regression on the mean embedding of each patient's patches, from a CSV of slide, time and event."""

    headline: ClassVar[tuple[str, ...]] = ("c_index",)

    kind: Literal["survival"]
    """Time to an event."""
    penalty: float = Field(default=0.1, ge=0)
    """λ of the ridge λ/2·‖β‖² beside the mean negative log partial likelihood; features are standardised."""

    def open(self, run_uri: str) -> "SlideDataset":
        """The slides with their times; raises as `open_survival` does."""
        from eosin.evaluation.datasets.slide_dataset import open_survival

        return open_survival(self.dataset, self.slides)

    def protocol(self) -> TaskProtocol:
        values = {**self.sampling(), "penalty": self.penalty}
        return TaskProtocol("survival-cox-mean", 1, hyperparameters=values)

    def run(self, dataset: Dataset, context: TaskContext) -> TaskResult:
        """The concordance index over patients, of each fold where the table has folds.

        Raises as `bags` does, and `UserError` where none has an event that another outlives.
        """
        from eosin.evaluation.datasets.slide_dataset import SlideDataset, patient_or_slide
        from eosin.evaluation.datasets.splits import folds_of
        from eosin.metrics.intervals import interval_over, interval_over_folds, interval_without

        assert isinstance(dataset, SlideDataset)
        with self.bags(dataset, context) as bags:
            pooled = dict(zip(bags.rows.tolist(), bags.means(), strict=True))
        folds = [self._judge(each, pooled) for each in folds_of(dataset)]
        values, (one, *others) = [fold.c_index(slice(None)) for fold in folds], folds
        if any(math.isnan(value) for value in values):
            raise UserError(
                f"{dataset.uri}: of the judged patients no two can be compared: none outlives an event"
            )
        if others:
            share = sum(len(f.risk) / f.num_learnt for f in folds) / len(folds)
            ends = interval_over_folds(values, share) if len(folds) > 2 else None
            num_patients = len({patient_or_slide(dataset.samples[row]) for row in pooled})
            over = f"{len(folds)} folds of {num_patients} patients"
        else:
            found = interval_without(one.c_index, None, len(one.risk))
            ends = (found.low, found.high) if found else None
            over = interval_over(len(one.risk), "patients")
        details = Details(
            notes=tuple(dict.fromkeys(note for fold in folds for note in fold.notes)),
            num_folds=len(folds) if others else 0,
            unit="slides",
            num_dropped=bags.num_dropped,
            dropped=tuple(LeftOut.model_validate(each) for each in bags.dropped),
            intervals={"c_index": ends} if ends else {},
            interval_over=over,
        )
        return TaskResult({"c_index": MetricValue.of(values)}, details, bags.num_patches)

    def _judge(self, dataset: "SlideDataset", pooled: Mapping[int, Any]) -> "_Risks":
        from eosin.evaluation.datasets.splits import split_samples
        from eosin.metrics.regression import fit_cox

        split = split_samples(dataset.samples)
        learnt = (*split.train, *split.val) if split.judged == "test" else split.train
        train, judged = (_patients(dataset, pooled, rows) for rows in (learnt, split.judged_indices))
        for where, part in (("training", train), (split.judged, judged)):
            if not part.events.any():
                patients = counted(len(part.events), "patient")
                raise UserError(f"{dataset.uri}: the {where} split has no event among {patients}")
        model = fit_cox(train.features, train.times, train.events, penalty=self.penalty)
        sizes = (
            f"{len(train.times)} patients learnt from, {len(judged.times)} judged, "
            f"of whom {judged.events.sum()} had the event"
        )
        return _Risks(model(judged.features), judged, len(train.times), (*split.notes, sizes))


class _Risks(NamedTuple):
    risk: Any
    """Of each judged patient."""
    judged: "_Patients"
    num_learnt: int
    notes: tuple[str, ...]

    def c_index(self, kept: Any) -> float:
        """Of the judged patients that the mask keeps."""
        from eosin.metrics.regression import concordance_index

        return concordance_index(self.judged.times[kept], self.judged.events[kept], self.risk[kept])


class _Patients(NamedTuple):
    features: Any
    """Mean over the slides of each patient, [n, D]."""
    times: Any
    events: Any


def _patients(dataset: "SlideDataset", pooled: Mapping[int, Any], rows: Sequence[int]) -> _Patients:
    """The patients of the slides `rows` that have an embedding; a slide without a patient is its own."""
    import numpy as np

    from eosin.evaluation.datasets.slide_dataset import EVENT, patient_or_slide

    of: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        if row in pooled:
            of[patient_or_slide(dataset.samples[row])].append(row)
    first = [members[0] for members in of.values()]
    return _Patients(
        np.array([np.mean([pooled[row] for row in members], axis=0) for members in of.values()]),
        np.array([dataset.times[row] for row in first]),
        np.array([dataset.samples[row].label == EVENT for row in first], dtype=bool),
    )
