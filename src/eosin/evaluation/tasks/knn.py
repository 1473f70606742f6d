"""Nearest neighbours in the training split vote on the judged one: no training, no choice of epoch."""

from __future__ import annotations

from eosin.config.evaluate import KnnTask
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.embeddings.embed import Embeddings
from eosin.evaluation.tasks.outcome import Outcome, accuracy_metrics, judge, labelled
from eosin.metrics.knn import knn_predict


def run_knn(task: KnnTask, dataset: Dataset, embeddings: Embeddings) -> Outcome:
    """Weighted cosine kNN. Raises `UserError` where the dataset has nothing to tell apart."""
    parts = labelled(dataset, embeddings)
    predicted = knn_predict(
        parts.bank.features,
        parts.bank.classes,
        parts.judged.features,
        k=task.k,
        temperature=task.temperature,
        num_classes=len(parts.class_names),
    )
    confusions, details = judge(parts, [predicted])
    k = min(task.k, len(parts.bank.classes))
    if k < task.k:
        details["notes"].append(f"k is {k}, not {task.k}: the training split has no more images")
    return Outcome(accuracy_metrics(confusions), {**details, "k": k, "num_bank": len(parts.bank.classes)})
