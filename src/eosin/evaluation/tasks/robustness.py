"""Robustness task: do embeddings stay when orientation, stain or sharpness changes and tissue does not?"""

from typing import ClassVar, Literal

from eosin.errors import PermanentError
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.task import Task, TaskContext, TaskProtocol, TaskResult
from eosin.records import MetricValue
from eosin.records.details import RobustnessDetails


class RobustnessTask(Task):
    """Agreement of embeddings under rotation, flip, change of stain and blur: no labels needed."""

    headline: ClassVar[tuple[str, ...]] = ("stain_retrieval", "rotation_retrieval")
    has_labels: ClassVar[bool] = False

    kind: Literal["robustness"]
    """Agreement under changes of a patch."""
    patch_set: str = "heldout"
    """Name of a patch set of the run, or the URI of any dataset."""

    def protocol(self) -> TaskProtocol:
        from eosin.evaluation.embeddings.embed import CHANGES_VERSION

        return TaskProtocol("robustness-orientation-stain-blur", CHANGES_VERSION)

    def run(self, dataset: Dataset, context: TaskContext) -> TaskResult:
        """For each change: how often a changed patch is found again among all patches, and how far it moved.

        Raises `PermanentError` where there are fewer than two patches.
        """
        from eosin.evaluation.embeddings.embed import CHANGES
        from eosin.metrics.embeddings import agreement, retrieval

        embeddings = context.embed(dataset)
        features = embeddings.features
        rows_by_mpp = embeddings.rows_by_mpp(dataset, min_samples=2)
        metrics: dict[str, MetricValue] = {}
        by_mpp: dict[str, dict[str, float]] = {mpp: {} for mpp in rows_by_mpp}
        for name in CHANGES:
            changed = context.embed(dataset, name).features
            try:
                metrics[f"{name}_retrieval"] = MetricValue.of([retrieval(features, changed)])
                metrics[f"{name}_agreement"] = MetricValue.of([agreement(features, changed)])
            except ValueError as error:
                raise PermanentError(
                    f"the embeddings of {dataset.uri} cannot be compared: {error}"
                ) from error
            for mpp, rows in rows_by_mpp.items():
                by_mpp[mpp][f"{name}_retrieval"] = retrieval(features[rows], changed[rows])
        details = RobustnessDetails(**embeddings.told(), num_samples=len(features), by_mpp=by_mpp)
        return TaskResult(metrics, details, len(features))
