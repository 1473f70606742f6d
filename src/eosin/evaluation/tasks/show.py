"""Which pictures a task shows beside its figures."""

from __future__ import annotations

from eosin.config.evaluate import KnnTask, UnsupervisedTask
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.embeddings.embed import Embeddings
from eosin.evaluation.pictures.examples import Example, map_examples, neighbour_examples
from eosin.evaluation.subject import Subject
from eosin.evaluation.tasks.outcome import labelled


def examples_of(
    task: UnsupervisedTask | KnnTask, dataset: Dataset, embeddings: Embeddings, subject: Subject
) -> list[Example]:
    """Neighbours of judged patches among those that vote; of any patches, and maps, without labels."""
    if isinstance(task, KnnTask):
        parts = labelled(dataset, embeddings)
        queries, bank = parts.judged.places.tolist(), parts.bank.places.tolist()
        found = [neighbour_examples(dataset, embeddings, queries, bank)]
    else:
        everything = range(len(embeddings.rows))
        found = [
            neighbour_examples(dataset, embeddings, everything, everything),
            map_examples(dataset, embeddings, subject),
        ]
    return [each for each in found if each is not None]
