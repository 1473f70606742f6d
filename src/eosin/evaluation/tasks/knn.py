"""kNN task: nearest neighbours in the training split vote on the judged one, without training."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.task import LabelledImagesTask, TaskContext, TaskProtocol, TaskResult

if TYPE_CHECKING:
    from eosin.evaluation.pictures import Example


class KnnTask(LabelledImagesTask):
    """Weighted cosine kNN."""

    headline: ClassVar[tuple[str, ...]] = ("balanced_accuracy", "top1")

    kind: Literal["knn"]
    """Nearest neighbours."""
    k: int = Field(default=20, ge=1)
    """Neighbours that vote."""
    temperature: float = Field(default=0.07, gt=0)
    """T of the votes' weights exp(cosine / T)."""

    def protocol(self) -> TaskProtocol:
        values = {"k": self.k, "temperature": self.temperature}
        return TaskProtocol("knn-cosine-weighted", 1, hyperparameters=values)

    def run(self, dataset: Dataset, context: TaskContext) -> TaskResult:
        """Accuracies of one run. Raises `UserError` where there is nothing to tell apart."""
        from eosin.evaluation.labelled import Labelled, judge_folds, split_folds
        from eosin.metrics.embeddings import knn_votes
        from eosin.records.details import KnnDetails

        def learn(parts: Labelled) -> tuple[Any, dict[str, Any]]:
            bank, num_bank = parts.bank, len(parts.bank.classes)
            votes = knn_votes(
                bank.features, bank.classes, parts.judged.features,
                k=self.k, temperature=self.temperature, num_classes=len(parts.class_names),
            )  # fmt: skip
            k = min(self.k, num_bank)
            fewer = f"k is {k}, not {self.k}: the training split has no more images"
            return votes[None], {"k": k, "num_bank": num_bank, "notes": (fewer,) if k < self.k else ()}

        embeddings = context.embed(dataset)
        found = judge_folds(split_folds(dataset, embeddings), learn, calibrated=False)
        details = KnnDetails(**embeddings.told(), **found.told)
        return TaskResult(found.metrics, details, len(embeddings.rows))

    def examples(self, dataset: Dataset, context: TaskContext) -> "list[Example]":
        """Judged patches with their nearest neighbours among those that vote."""
        from eosin.evaluation.labelled import split_folds
        from eosin.evaluation.pictures import neighbour_examples

        embeddings = context.embed(dataset)
        parts = split_folds(dataset, embeddings)[0]
        queries, bank = parts.judged.places.tolist(), parts.bank.places.tolist()
        found = neighbour_examples(dataset, embeddings, queries, bank)
        return [found] if found else []
