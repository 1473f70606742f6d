"""Centre robustness: whether neighbours in embedding space share tissue or the place where they were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eosin.metrics.matrix import Matrix, as_matrix

_BLOCK = 1024
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NeighbourCounts:
    """Of all (sample, neighbour) pairs, how many are of the same class or another, and the same centre or
    another."""

    same_class_same_centre: int
    same_class_other_centre: int
    other_class_same_centre: int
    other_class_other_centre: int

    @property
    def total(self) -> int:
        """All pairs."""
        return (
            self.same_class_same_centre
            + self.same_class_other_centre
            + self.other_class_same_centre
            + self.other_class_other_centre
        )

    @property
    def robustness_index(self) -> float | None:
        """SO / (SO + OS): 1 where only tissue makes neighbours, 0 where only the centre does.

        SO counts neighbours of the same class from another centre, OS those of another class from the same
        centre (Kömen et al., PathoROB, 2025). None where there are neither.
        """
        tells = self.same_class_other_centre + self.other_class_same_centre
        return self.same_class_other_centre / tells if tells else None

    @property
    def same_class(self) -> float:
        """Share of the pairs that are of one class."""
        return (self.same_class_same_centre + self.same_class_other_centre) / self.total

    @property
    def same_centre(self) -> float:
        """Share of the pairs that are of one centre."""
        return (self.same_class_same_centre + self.other_class_same_centre) / self.total


def count_neighbours(
    embeddings: npt.ArrayLike,
    classes: Sequence[str],
    centres: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    k: int,
) -> NeighbourCounts:
    """The `k` nearest of each sample by cosine, those of its own group (patient) passed over.

    A sample with fewer than `k` others counts those it has. Raises ValueError where lengths differ or no
    sample has another outside its group.
    """
    matrix = as_matrix(embeddings, min_samples=2)
    unit = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    own = [str(i) for i in range(len(unit))] if groups is None else groups
    if not len(unit) == len(classes) == len(centres) == len(own):
        raise ValueError(f"{len(classes)} classes, {len(centres)} centres for {len(unit)} embeddings")
    codes = [np.unique(np.asarray(names), return_inverse=True)[1] for names in (classes, centres, own)]
    counts = np.zeros((2, 2), dtype=np.int64)
    for start in range(0, len(unit), _BLOCK):
        counts += _count(unit, codes, start, min(start + _BLOCK, len(unit)), k)
    if not counts.sum():
        raise ValueError("no sample has another outside its own group")
    return NeighbourCounts(int(counts[1, 1]), int(counts[1, 0]), int(counts[0, 1]), int(counts[0, 0]))


def _count(unit: Matrix, codes: Sequence[Codes], start: int, stop: int, k: int) -> Codes:
    """[2, 2] pairs: row whether the class is the same, column whether the centre is."""
    classes, centres, own = codes
    similarity = unit[start:stop] @ unit.T
    similarity[own[start:stop, None] == own[None, :]] = -np.inf
    k = min(k, len(unit) - 1)
    nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    counts = np.isfinite(np.take_along_axis(similarity, nearest, axis=1))
    same_class = (classes[nearest] == classes[start:stop, None])[counts].astype(np.int64)
    same_centre = (centres[nearest] == centres[start:stop, None])[counts].astype(np.int64)
    return np.bincount(2 * same_class + same_centre, minlength=4).reshape(2, 2)
