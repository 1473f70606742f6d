"""Unsupervised task: RankMe, ODCorr and the spectrum of embeddings."""

from typing import TYPE_CHECKING, ClassVar, Literal

from eosin.config.task import TaskName
from eosin.errors import PermanentError
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.task import Task, TaskContext, TaskProtocol, TaskResult
from eosin.records import MetricValue
from eosin.records.details import Spectrum, UnsupervisedDetails

if TYPE_CHECKING:
    from eosin.evaluation.embeddings.embed import Features
    from eosin.evaluation.pictures import Example

_SPECTRUM_POINTS = 64


class UnsupervisedTask(Task):
    """RankMe and ODCorr of the held-out patch set: no labels needed."""

    headline: ClassVar[tuple[str, ...]] = ("rankme", "odcorr")
    has_labels: ClassVar[bool] = False

    kind: Literal["unsupervised"] = "unsupervised"
    """RankMe and ODCorr."""
    name: TaskName = "heldout"
    """Of the task, in records and in the report."""
    patch_set: str = "heldout"
    """Name of a patch set of the run, or the URI of any dataset."""

    def protocol(self) -> TaskProtocol:
        return TaskProtocol("rankme-odcorr", 1)

    def run(self, dataset: Dataset, context: TaskContext) -> TaskResult:
        """RankMe (uncentred), ODCorr of features and of samples; also at each magnification alone.

        Raises `PermanentError` where they are not defined: fewer than two samples, features that do not vary.
        """
        from eosin.metrics.embeddings import num_constant_features, odcorr, odcorr_samples, rankme

        embeddings = context.embed(dataset)
        features = embeddings.features
        try:
            metrics = {
                "rankme": MetricValue.of([rankme(features)]),
                "odcorr": MetricValue.of([odcorr(features)], higher_is_better=False),
                "odcorr_samples": MetricValue.of([odcorr_samples(features)], higher_is_better=False),
            }
        except ValueError as error:
            raise PermanentError(f"the embeddings of {dataset.uri} cannot be measured: {error}") from error
        by_mpp = embeddings.rows_by_mpp(dataset, min_samples=1)
        details = UnsupervisedDetails(
            **embeddings.told(),
            num_samples=features.shape[0],
            num_features=features.shape[1],
            constant_features=num_constant_features(features),
            spectrum=_spectrum(features),
            by_mpp={mpp: _figures(features[rows]) for mpp, rows in by_mpp.items()},
        )
        return TaskResult(metrics, details, len(embeddings.rows))

    def examples(self, dataset: Dataset, context: TaskContext) -> "list[Example]":
        """Nearest neighbours of any patches, and maps of their tokens."""
        from eosin.evaluation.pictures import map_examples, neighbour_examples

        embeddings = context.embed(dataset)
        everything = range(len(embeddings.rows))
        found = [
            neighbour_examples(dataset, embeddings, everything, everything),
            map_examples(dataset, embeddings, context.model),
        ]
        return [each for each in found if each is not None]


def _spectrum(features: "Features") -> Spectrum:
    """Singular values over their largest, at up to 64 log-spaced ranks (counted from 1), and α."""
    import numpy as np

    from eosin.metrics.embeddings import power_law_exponent, singular_values

    values = singular_values(features)
    ranks = np.unique(np.geomspace(1, len(values), _SPECTRUM_POINTS).round().astype(int))
    relative = values[ranks - 1] / values[0]
    try:
        alpha: float | None = power_law_exponent(values)
    except ValueError:
        alpha = None
    return Spectrum(rank=ranks.tolist(), relative=tuple(float(f"{v:.6g}") for v in relative), alpha=alpha)


def _figures(features: "Features") -> dict[str, float]:
    from eosin.metrics.embeddings import odcorr, rankme

    figures: dict[str, float] = {"num_samples": len(features)}
    for name, measure in (("rankme", rankme), ("odcorr", odcorr)):
        try:
            figures[name] = measure(features)
        except ValueError:  # too few patches at this magnification: the figure is left out
            continue
    return figures
