"""Overlap of predicted and true regions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def dice(confusion: npt.ArrayLike) -> list[float | None]:
    """Dice of each class, 2·TP / (2·TP + FP + FN) over all pixels together; None for a class without any.

    `confusion` [C, C] counts pixels: row the true class, column the predicted one. A class that is
    predicted but never there has 0.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    sizes = counts.sum(axis=0) + counts.sum(axis=1)
    return [float(2 * counts[c, c] / sizes[c]) if sizes[c] else None for c in range(len(counts))]
