"""Figures of a classifier's predictions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eosin.metrics.matrix import Labels


def confusion_matrix(truth: npt.ArrayLike, predicted: npt.ArrayLike, num_classes: int) -> Labels:
    """Counts, int64 [C, C]: row the true class, column the predicted one.

    Raises ValueError where lengths differ, nothing is given, or a class is outside [0, C).
    """
    true, guess = np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    if true.shape != guess.shape or true.ndim != 1 or not len(true):
        raise ValueError(f"{true.shape} true classes for {guess.shape} predictions")
    if min(true.min(), guess.min()) < 0 or max(true.max(), guess.max()) >= num_classes:
        raise ValueError(f"a class is outside [0, {num_classes})")
    counts = np.bincount(true * num_classes + guess, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def top1(confusion: npt.ArrayLike) -> float:
    """Share of samples predicted right."""
    counts = np.asarray(confusion)
    return float(np.trace(counts) / counts.sum())


def recalls(confusion: npt.ArrayLike) -> list[float | None]:
    """Share of each class predicted right; None for a class without samples."""
    counts = np.asarray(confusion)
    return [float(row[c] / row.sum()) if row.sum() else None for c, row in enumerate(counts)]


def balanced_accuracy(confusion: npt.ArrayLike) -> float:
    """Mean recall over the classes that have samples (scikit-learn's definition)."""
    present = [recall for recall in recalls(confusion) if recall is not None]
    return float(np.mean(present))


def f1_macro(confusion: npt.ArrayLike) -> float:
    """Mean over classes that occur, in truth or prediction, of 2 TP / (2 TP + FP + FN)."""
    counts = np.asarray(confusion)
    support = counts.sum(axis=0) + counts.sum(axis=1)
    scores = 2 * np.diagonal(counts)[support > 0] / support[support > 0]
    return float(scores.mean())


def calibration_error(truth: npt.ArrayLike, probabilities: npt.ArrayLike, *, num_bins: int = 15) -> float:
    """Expected calibration error: Σ_bins share · |accuracy − confidence| over equal-width bins.

    `probabilities` [N, C] (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3).
    """
    true, p = np.asarray(truth), np.asarray(probabilities, dtype=np.float64)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == true
    bins = np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)
    gap = np.bincount(bins, weights=right.astype(np.float64) - confidence, minlength=num_bins)
    return float(np.abs(gap).sum() / len(true))
