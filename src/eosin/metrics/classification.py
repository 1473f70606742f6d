"""Figures of predicted classes and masks, by scikit-learn where it has them."""

import numpy as np
import numpy.typing as npt
from sklearn import metrics

Labels = npt.NDArray[np.int64]

_CALIBRATION_BINS = 15


def confusion_matrix(truth: npt.ArrayLike, predicted: npt.ArrayLike, num_classes: int) -> Labels:
    """Counts, int64 [C, C]: row the true class, column the predicted one.

    Raises ValueError where lengths differ, nothing is given, or a class is outside [0, C).
    """
    true, guess = np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    if true.shape != guess.shape or true.ndim != 1 or not len(true):
        raise ValueError(f"{true.shape} true classes for {guess.shape} predictions")
    if min(true.min(), guess.min()) < 0 or max(true.max(), guess.max()) >= num_classes:
        raise ValueError(f"a class is outside [0, {num_classes})")
    return np.asarray(metrics.confusion_matrix(true, guess, labels=range(num_classes)), dtype=np.int64)


def recalls(confusion: npt.ArrayLike) -> list[float | None]:
    """Share of each class predicted right, of counts [C, C]; None for a class without samples."""
    counts = np.asarray(confusion)
    return [float(row[c] / row.sum()) if row.sum() else None for c, row in enumerate(counts)]


def accuracies(truth: Labels, predicted: Labels) -> dict[str, float]:
    """Balanced accuracy, top-1 and macro F1 of predictions [N].

    The first is the mean recall over the classes that have samples, the last a mean over those in truth or
    prediction.
    """
    present = np.unique(truth)
    return {
        "balanced_accuracy": float(
            metrics.recall_score(truth, predicted, labels=present, average="macro", zero_division=0)
        ),
        "top1": float(metrics.accuracy_score(truth, predicted)),
        "f1_macro": float(metrics.f1_score(truth, predicted, average="macro", zero_division=0)),
    }


def ranking_figures(truth: Labels, probabilities: npt.NDArray[np.floating]) -> dict[str, float]:
    """AUROC and AUPRC of probabilities [N, C].

    Of the second class where there are two, else the macro mean of each class against the rest. Empty where a
    class has no sample, or no other: then they are not defined.
    """
    num_classes = probabilities.shape[1]
    if len(np.unique(truth)) < num_classes or num_classes < 2:
        return {}
    columns = [1] if num_classes == 2 else range(num_classes)
    pairs = [(truth == c, probabilities[:, c]) for c in columns]
    return {
        "auroc": float(np.mean([metrics.roc_auc_score(*pair) for pair in pairs])),
        "auprc": float(np.mean([metrics.average_precision_score(*pair) for pair in pairs])),
    }


def quadratic_kappa(truth: Labels, predicted: Labels) -> float:
    """Agreement of ordered classes by quadratic weights; nan where both are one class throughout."""
    return float(metrics.cohen_kappa_score(truth, predicted, weights="quadratic"))


def calibration_error(truth: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Expected calibration error: Σ_bins share · |accuracy − confidence| over 15 equal-width bins.

    `probabilities` [N, C] (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3);
    scikit-learn does not have it.
    """
    true, p = np.asarray(truth), np.asarray(probabilities, dtype=np.float64)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == true
    bins = np.minimum((confidence * _CALIBRATION_BINS).astype(np.int64), _CALIBRATION_BINS - 1)
    gap = np.bincount(bins, weights=right.astype(np.float64) - confidence, minlength=_CALIBRATION_BINS)
    return float(np.abs(gap).sum() / len(true))


def dice(confusion: npt.ArrayLike) -> list[float | None]:
    """Dice of each class, 2·TP / (2·TP + FP + FN) over all pixels together; None for a class without any.

    `confusion` [C, C] counts pixels: row the true class, column the predicted one. A class that is
    predicted but never there has 0.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    sizes = counts.sum(axis=0) + counts.sum(axis=1)
    return [float(2 * counts[c, c] / sizes[c]) if sizes[c] else None for c in range(len(counts))]
