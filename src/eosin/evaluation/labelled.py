"""Labelled embeddings: split into train, validation and judged, and the figures of what was predicted."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset, Sample
from eosin.evaluation.datasets.splits import folds_of, split_samples
from eosin.evaluation.embeddings.embed import Embeddings, Features
from eosin.metrics.classification import (
    accuracies,
    calibration_error,
    confusion_matrix,
    quadratic_kappa,
    ranking_figures,
    recalls,
)
from eosin.metrics.group_counts import Figure, group_confusions
from eosin.metrics.intervals import Interval, interval, interval_over, interval_over_folds, interval_without
from eosin.records import MetricValue
from eosin.words import counted

Classes = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.floating]
_MAX_PREDICTIONS = 200_000
_MAX_COUNTS = 50_000
_MIN_JUDGED = 5


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
    names = label_names(dataset)
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
    notes = (
        *split.notes,
        *_absent(train, judged, names),
        *_rare(judged, names),
        *_same_images(embeddings, train, val, judged),
    )
    return Labelled(names, train, val, judged, bank, split.judged, notes)


def split_folds(dataset: Dataset, embeddings: Embeddings) -> list[Labelled]:
    """`split_labelled` of each fold; one where the dataset has no folds. Raises as that does."""
    return [split_labelled(each, embeddings) for each in folds_of(dataset)]


@dataclass(frozen=True)
class Judged:
    """Figures of all runs, and the fields of `ClassifierDetails` that go with them."""

    metrics: dict[str, MetricValue]
    told: dict[str, Any]


Learn = Callable[[Labelled], tuple[Probabilities, dict[str, Any]]]
"""Learns of one split: the probabilities [S, N, C] of its judged samples, and fields of the details."""


def judge_folds(splits: Sequence[Labelled], learn: Learn, *, calibrated: bool = True) -> Judged:
    """`judge` of what is learnt of each split; several are folds, of which a figure has one value each.

    Intervals are then of the mean over folds, by Student's t and the corrected variance of Nadeau and Bengio
    (2003): folds share most of what they learn from, so their own spread says too little.
    """
    found = []
    for parts in splits:
        probabilities, told = learn(parts)
        judged = judge(parts, probabilities, calibrated=calibrated)
        told = {**told, "notes": (*parts.notes, *told.get("notes", ()))}
        found.append((parts, probabilities, Judged(judged.metrics, judged.told | told)))
    return found[0][2] if len(found) == 1 else _over_folds(found)


def _over_folds(found: Sequence[tuple[Labelled, Probabilities, Judged]]) -> Judged:
    each = [judged for _, _, judged in found]
    metrics = {
        name: MetricValue.of(
            [one.metrics[name].mean for one in each], higher_is_better=value.higher_is_better
        )
        for name, value in each[0].metrics.items()
        if all(name in one.metrics for one in each)
    }
    names = found[0][0].class_names
    samples = {sample: label for parts, _, _ in found for sample, label in
               zip(parts.judged.samples, parts.judged.classes.tolist(), strict=True)}  # fmt: skip
    by_patient = all(sample.patient for sample in samples)
    counts: dict[str, Classes] = defaultdict(lambda: np.zeros((len(names), len(names)), dtype=np.int64))
    for parts, probabilities, _ in found:
        for i, (sample, true) in enumerate(zip(parts.judged.samples, parts.judged.classes, strict=True)):
            group = counts[sample.patient if by_patient else sample.source]
            np.add.at(group[true], probabilities[:, i].argmax(axis=-1), 1)
    share = float(np.mean([len(p.judged.samples) / len(p.bank.samples) for p, _, _ in found]))
    total = np.sum(list(counts.values()), axis=0)
    unit = "patients" if by_patient else "images"
    told = each[0].told | {
        "num_folds": len(found),
        "num_judged": len(samples),
        "class_counts": {name: list(samples.values()).count(i) for i, name in enumerate(names)},
        "confusion": total.tolist(),
        "recall": dict(zip(names, recalls(total), strict=True)),
        "truth": (),
        "predicted": (),
        "patients": (),
        "group_confusions": {name: each.tolist() for name, each in sorted(counts.items())}
        if len(counts) * len(names) ** 2 <= _MAX_COUNTS
        else {},
        "intervals": {
            name: interval_over_folds(value.values, share, low=-1 if name == "quadratic_kappa" else 0)
            for name, value in metrics.items()
            if len(found) > 2 and name in (*_COUNTED, "auroc", "auprc")
        },
        "interval_over": f"{len(found)} folds of {len(counts)} {unit}",
        "notes": tuple(dict.fromkeys(note for one in each for note in one.told["notes"])),
        **{name: sum((tuple(one.told.get(name, ())) for one in each), ())
           for name in ("best_epoch", "validation_score")},
    }  # fmt: skip
    return Judged(metrics, told)


def judge(parts: Labelled, probabilities: Probabilities, *, calibrated: bool = True) -> Judged:
    """Figures of runs that give `probabilities` [S, N, C] of the judged samples.

    The likeliest class is predicted. Quadratic kappa is told where the classes are numbers, hence ordered;
    calibration where `calibrated` says that the values are meant as probabilities. Intervals are of the
    mean over all runs.
    """
    names, judged = parts.class_names, parts.judged
    predicted = probabilities.argmax(axis=-1)
    ordered = all(name.isdigit() for name in names)
    by_run = [
        _figures(judged.classes, run, guess, ordered=ordered, calibrated=calibrated)
        for run, guess in zip(probabilities, predicted, strict=True)
    ]
    metrics = {
        name: MetricValue.of([run[name] for run in by_run], higher_is_better=name != "calibration_error")
        for name in by_run[0]
        if all(np.isfinite(run.get(name, np.nan)) for run in by_run)
    }
    return Judged(metrics, {**_counts(parts, predicted), **_intervals(parts, probabilities, metrics)})


def _figures(
    truth: Classes, probabilities: Probabilities, predicted: Classes, *, ordered: bool, calibrated: bool
) -> dict[str, float]:
    figures = accuracies(truth, predicted) | ranking_figures(truth, probabilities)
    if ordered:
        figures["quadratic_kappa"] = quadratic_kappa(truth, predicted)
    if calibrated:
        figures["calibration_error"] = calibration_error(truth, probabilities)
    return figures


def _counts(parts: Labelled, predicted: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Counts over all runs, and what two models are compared by: each sample, or each patient."""
    names, judged = parts.class_names, parts.judged
    total = sum(confusion_matrix(judged.classes, run, len(names)) for run in predicted)
    told: dict[str, Any] = {
        "classes": names,
        "judged_on": parts.judged_on,
        "num_train": len(parts.train.samples),
        "num_val": len(parts.val.samples),
        "num_judged": len(judged.samples),
        "class_counts": {name: int((judged.classes == i).sum()) for i, name in enumerate(names)},
        "confusion": np.asarray(total).tolist(),
        "recall": dict(zip(names, recalls(total), strict=True)),
    }
    patients = judged.patients
    if predicted.size <= _MAX_PREDICTIONS:
        kept = {"truth": judged.classes.tolist(), "predicted": predicted.tolist(), "patients": patients or ()}
        return told | kept
    if patients and len(set(patients)) * len(names) ** 2 <= _MAX_COUNTS:
        counts = group_confusions(judged.classes, predicted, groups=patients, num_classes=len(names))
        sums = np.rint(counts * len(predicted)).astype(np.int64).tolist()
        return told | {"group_confusions": dict(zip(sorted(set(patients)), sums, strict=True))}
    return told


def _intervals(
    parts: Labelled, probabilities: Probabilities, metrics: dict[str, MetricValue]
) -> dict[str, Any]:
    judged, predicted = parts.judged, probabilities.argmax(axis=-1)
    patients = judged.patients
    counts = group_confusions(judged.classes, predicted, groups=patients, num_classes=len(parts.class_names))
    found: dict[str, Interval | None] = {name: interval(counts, name) for name in _COUNTED if name in metrics}
    for name in (name for name in ("auroc", "auprc") if name in metrics):
        found[name] = interval_without(
            partial(_mean_ranking, judged.classes, probabilities, name),
            patients,
            len(judged.classes),
        )
    return {
        "intervals": {name: (each.low, each.high) for name, each in found.items() if each},
        "interval_over": interval_over(len(counts), "patients" if patients else "images"),
    }


_COUNTED: tuple[Figure, ...] = ("balanced_accuracy", "top1", "f1_macro", "quadratic_kappa")


def _mean_ranking(
    truth: Classes, probabilities: Probabilities, name: str, kept: npt.NDArray[np.bool_]
) -> float:
    """Over runs, of the samples that the mask keeps; nan where it is not defined."""
    runs = [ranking_figures(truth[kept], run[kept]) for run in probabilities]
    return float(np.mean([run.get(name, np.nan) for run in runs]))


def label_names(dataset: Dataset) -> tuple[str, ...]:
    """Of its labels, sorted. Raises `UserError` where there are fewer than two."""
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
        raise UserError(
            f"{dataset.uri}: the {where} split has {counted(len(part.samples), 'readable image')} "
            f"of {counted(len(present), 'class')} ({_listed({*present}, names) or 'none'}); two are needed",
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


def _rare(judged: LabelledPart, names: Sequence[str]) -> list[str]:
    """A warning where a class is judged on so few samples that its recall can only jump."""
    counts = np.bincount(judged.classes, minlength=len(names))
    rare = [
        f"{name} on {count}" for name, count in zip(names, counts, strict=True) if 0 < count < _MIN_JUDGED
    ]
    if not rare:
        return []
    return [f"judged on fewer than {_MIN_JUDGED} samples, so balanced accuracy jumps: {', '.join(rare)}"]


def _same_images(
    embeddings: Embeddings, train: LabelledPart, val: LabelledPart, judged: LabelledPart
) -> list[str]:
    """Warnings where the same bytes stand under several names: learnt and judged, or of two classes."""
    if not len(embeddings.hashes):
        return []
    parts = [embeddings.hashes[part.places] for part in (train, val, judged)]
    learnt, asked = np.concatenate(parts[:2]), parts[2]
    both = int(np.isin(asked, learnt).sum())
    seen = np.concatenate([learnt, asked])
    classes = np.concatenate([part.classes for part in (train, val, judged)])
    pairs = np.unique(np.stack([seen, classes.astype(np.uint64)], axis=1), axis=0)
    of_two = int((np.unique(pairs[:, 0], return_counts=True)[1] > 1).sum())
    notes = [f"{counted(both, 'judged image')}, byte for byte, among those learnt from: figures flatter"]
    notes += [f"{counted(of_two, 'image')}, byte for byte the same, with two labels"]
    return [note for note, count in zip(notes, (both, of_two), strict=True) if count]


def _listed(classes: set[int], names: Sequence[str]) -> str:
    return ", ".join(names[i] for i in sorted(classes))


def _absent(train: LabelledPart, judged: LabelledPart, names: Sequence[str]) -> list[str]:
    notes = []
    for where, part in (("training", train), ("the judged split, hence no AUROC", judged)):
        absent = [name for i, name in enumerate(names) if not (part.classes == i).any()]
        if absent:
            notes.append(f"no image of {', '.join(absent)} in {where}")
    return notes
