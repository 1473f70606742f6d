"""Labelled embeddings: split into train, validation and judged, and the figures of what was predicted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset, Sample
from eosin.evaluation.datasets.splits import split_samples
from eosin.evaluation.embeddings.embed import Embeddings, Features
from eosin.metrics.bootstrap import Figure, group_confusions, interval
from eosin.metrics.classification import (
    balanced_accuracy,
    calibration_error,
    confusion_matrix,
    f1_macro,
    recalls,
)
from eosin.records import MetricValue

Classes = npt.NDArray[np.int64]
_MAX_PREDICTIONS = 20_000
_FIGURES: tuple[Figure, ...] = ("balanced_accuracy", "top1", "f1_macro")


@dataclass(frozen=True)
class LabelledPart:
    """Samples of one split with their embeddings [n, D] and classes [n]."""

    features: Features
    classes: Classes
    samples: tuple[Sample, ...]
    places: npt.NDArray[np.int64]
    """Of the samples in the embeddings they were taken from."""

    @property
    def patients(self) -> list[str] | None:
        """Of each sample; None unless all are known."""
        names = [sample.patient for sample in self.samples]
        return names if all(names) else None


@dataclass(frozen=True)
class Labelled:
    """Embeddings with known classes, split; `judged` is where the figures are taken."""

    class_names: tuple[str, ...]
    train: LabelledPart
    val: LabelledPart
    judged: LabelledPart
    bank: LabelledPart
    """What a task without a choice of epoch learns from: train, and validation cut off it."""
    judged_on: str
    """The split: test, or val."""
    notes: tuple[str, ...]


def split_labelled(dataset: Dataset, embeddings: Embeddings) -> Labelled:
    """The labelled, readable samples of `dataset`, split by `split_samples`.

    Raises `UserError` naming the dataset where fewer than two classes are left to learn or judge, or where
    none that is judged is learnt.
    """
    names = _class_names(dataset)
    # Split before dropping: an image that cannot be read must not move another to the other side.
    rows = [row for row, sample in enumerate(dataset.samples) if sample.label]
    split = split_samples([dataset.samples[row] for row in rows])
    place = {int(row): i for i, row in enumerate(embeddings.rows)}
    number = {name: i for i, name in enumerate(names)}

    def part(indices: Sequence[int]) -> LabelledPart:
        there = [rows[i] for i in indices if rows[i] in place]
        chosen = tuple(dataset.samples[row] for row in there)
        classes = np.array([number[sample.label] for sample in chosen], dtype=np.int64)
        places = np.array([place[row] for row in there], dtype=np.int64)
        return LabelledPart(embeddings.features[places], classes, chosen, places)

    train, val, judged = part(split.train), part(split.val), part(split.judged_indices)
    bank = part(sorted(split.train + split.val)) if split.val_is_drawn else train
    _require_two_classes(dataset, train, names, "training")
    _require_two_classes(dataset, judged, names, split.judged)
    _require_common_class(dataset, train, judged, names)
    notes = (*split.notes, *_absent(train, judged, names))
    return Labelled(names, train, val, judged, bank, split.judged, notes)


def judge(
    parts: Labelled, predictions: Sequence[npt.ArrayLike]
) -> tuple[list[npt.NDArray[np.int64]], dict[str, Any]]:
    """The confusion matrix [C, C] of each run, and fields of `ClassifierDetails`.

    `predictions`: of each run, the class of each judged sample. The interval is of the first run.
    """
    names, judged = parts.class_names, parts.judged
    confusions = [confusion_matrix(judged.classes, run, len(names)) for run in predictions]
    patients = judged.patients
    counts = group_confusions(judged.classes, predictions[0], groups=patients, num_classes=len(names))
    found = {figure: interval(counts, figure) for figure in _FIGURES}
    total = np.sum(confusions, axis=0)
    told: dict[str, Any] = {
        "classes": names,
        "judged_on": parts.judged_on,
        "num_train": len(parts.train.samples),
        "num_val": len(parts.val.samples),
        "num_judged": len(judged.samples),
        "class_counts": {name: int((judged.classes == i).sum()) for i, name in enumerate(names)},
        "confusion": total.tolist(),
        "recall": dict(zip(names, recalls(total), strict=True)),
        "intervals": {figure: (each.low, each.high) for figure, each in found.items()},
        "interval_over": f"{len(counts)} {'patients' if patients else 'images'}",
    }
    if len(judged.classes) <= _MAX_PREDICTIONS:
        told |= {
            "truth": judged.classes.tolist(),
            "predicted": [np.asarray(run).tolist() for run in predictions],
            "patients": patients or (),
        }
    return confusions, told


def accuracy_metrics(confusions: Sequence[npt.NDArray[np.int64]]) -> dict[str, MetricValue]:
    """Balanced accuracy and top-1 of runs with these confusion matrices [C, C]."""
    return {
        "balanced_accuracy": MetricValue.of([balanced_accuracy(c) for c in confusions]),
        "top1": MetricValue.of([float(np.trace(c) / c.sum()) for c in confusions]),
    }


def classifier_metrics(
    truth: Classes, probabilities: npt.NDArray[np.float32], confusions: Sequence[npt.NDArray[np.int64]]
) -> dict[str, MetricValue]:
    """What is told of runs that give probabilities [S, N, C]."""
    return accuracy_metrics(confusions) | {
        "f1_macro": MetricValue.of([f1_macro(c) for c in confusions]),
        "calibration_error": MetricValue.of(
            [calibration_error(truth, run) for run in probabilities], higher_is_better=False
        ),
    }


def _class_names(dataset: Dataset) -> tuple[str, ...]:
    names = dataset.classes
    if not names:
        raise UserError(
            f"no image of {dataset.uri} has a label",
            hint="a supervised task needs class folders, a label column, or a labelled patch set",
        )
    if len(names) < 2:
        raise UserError(f"{dataset.uri} has one class only, {names[0]}: there is nothing to tell apart")
    return names


def _require_two_classes(dataset: Dataset, part: LabelledPart, names: Sequence[str], where: str) -> None:
    present = Counter(part.classes.tolist())
    if len(present) < 2:
        found = ", ".join(names[i] for i in present) or "none"
        raise UserError(
            f"{dataset.uri}: the {where} split has {len(part.samples)} readable image(s) "
            f"of {len(present)} class(es) ({found}); two classes are needed",
            hint="where no split is given, each class needs some five images",
        )


def _require_common_class(
    dataset: Dataset, train: LabelledPart, judged: LabelledPart, names: Sequence[str]
) -> None:
    learnt, asked = set(train.classes.tolist()), set(judged.classes.tolist())
    if not learnt & asked:
        raise UserError(
            f"{dataset.uri}: labels do not match: training has {_listed(learnt, names)}, "
            f"the judged split {_listed(asked, names)}",
            hint="call a class by the same name in every split",
        )


def _listed(classes: set[int], names: Sequence[str]) -> str:
    return ", ".join(names[i] for i in sorted(classes))


def _absent(train: LabelledPart, judged: LabelledPart, names: Sequence[str]) -> list[str]:
    notes = []
    for where, part in (("training", train), ("the judged split", judged)):
        absent = [name for i, name in enumerate(names) if not (part.classes == i).any()]
        if absent:
            notes.append(f"no image of {', '.join(absent)} in {where}")
    return notes
