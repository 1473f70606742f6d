"""Survival task: a Cox model on pooled slide embeddings, judged by the concordance index."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from eosin.errors import UserError
from eosin.evaluation.task import TaskContext, TaskProtocol, TaskResult
from eosin.evaluation.tasks.slide import SlidePatchesTask
from eosin.records import MetricValue
from eosin.records.details import Details, LeftOut

if TYPE_CHECKING:
    from eosin.evaluation.datasets.dataset import Dataset
    from eosin.evaluation.datasets.slide_dataset import SlideDataset


class SurvivalTask(SlidePatchesTask):
    """Cox regression on the mean embedding of each patient's patches, from a CSV of slide, time and event."""

    headline: ClassVar[tuple[str, ...]] = ("c_index",)

    kind: Literal["survival"]
    """Time to an event."""
    penalty: float = Field(default=0.1, ge=0)
    """λ of the ridge λ/2·‖β‖² beside the mean negative log partial likelihood; features are standardised."""

    def open(self, run_uri: str) -> SlideDataset:
        """The slides with their times; raises as `open_survival` does."""
        from eosin.evaluation.datasets.slide_dataset import open_survival

        return open_survival(self.dataset, self.slides)

    def protocol(self) -> TaskProtocol:
        values = {**self.sampling(), "penalty": self.penalty}
        return TaskProtocol("survival-cox-mean", 1, hyperparameters=values)

    def run(self, dataset: Dataset, context: TaskContext) -> TaskResult:
        """The concordance index over patients.

        Raises as `bags` does, and `UserError` where no event is learnt or judged.
        """
        from eosin.evaluation.datasets.slide_dataset import SlideDataset
        from eosin.evaluation.datasets.splits import split_samples
        from eosin.metrics.intervals import interval_over, interval_without
        from eosin.metrics.survival import concordance_index, fit_cox

        assert isinstance(dataset, SlideDataset)
        with self.bags(dataset, context) as bags:
            ends = zip(bags.starts, bags.starts[1:], strict=False)
            means = [bags.features[start:end].mean(axis=0) for start, end in ends]
        pooled, split = dict(zip(bags.rows.tolist(), means, strict=True)), split_samples(dataset.samples)
        learnt = (*split.train, *split.val) if split.judged == "test" else split.train
        train, judged = (_patients(dataset, pooled, rows) for rows in (learnt, split.judged_indices))
        for where, part in (("training", train), (split.judged, judged)):
            if not part.events.any():
                raise UserError(
                    f"{dataset.uri}: the {where} split has no event among {len(part.events)} patient(s)"
                )
        model = fit_cox(train.features, train.times, train.events, penalty=self.penalty)
        risk = model(judged.features)

        def figure(kept: Any) -> float:
            return concordance_index(judged.times[kept], judged.events[kept], risk[kept])

        found = interval_without(figure, None, len(risk))
        details = Details(
            notes=(
                *split.notes,
                f"{len(train.times)} patients learnt from, {len(risk)} judged, "
                f"of whom {judged.events.sum()} had the event",
            ),
            unit="slides",
            num_dropped=bags.num_dropped,
            dropped=tuple(LeftOut.model_validate(each) for each in bags.dropped),
            intervals={"c_index": (found.low, found.high)} if found else {},
            interval_over=interval_over(len(risk), "patients"),
        )
        return TaskResult({"c_index": MetricValue.of([figure(slice(None))])}, details, bags.num_patches)


class _Patients(NamedTuple):
    features: Any
    """Mean over the slides of each patient, [n, D]."""
    times: Any
    events: Any


def _patients(dataset: SlideDataset, pooled: Mapping[int, Any], rows: Sequence[int]) -> _Patients:
    """The patients of the slides `rows` that have an embedding; a slide without a patient is its own."""
    import numpy as np

    from eosin.evaluation.datasets.slide_dataset import EVENT

    of: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        if row in pooled:
            of[dataset.samples[row].patient or dataset.samples[row].source].append(row)
    first = [members[0] for members in of.values()]
    return _Patients(
        np.array([np.mean([pooled[row] for row in members], axis=0) for members in of.values()]),
        np.array([dataset.times[row] for row in first]),
        np.array([dataset.samples[row].label == EVENT for row in first], dtype=bool),
    )
