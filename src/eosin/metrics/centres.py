"""Figures of hospitals in embeddings: PathoROB's robustness index, clustering score and performance drop.

Kömen et al., "Towards Robust Foundation Models for Digital Pathology" (arXiv 2507.17845, 2025); equal to its
code, bifold-pathomics/PathoROB at 46594e9 (`tests/unit/metrics/test_centres.py`).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import combinations, product

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, balanced_accuracy_score, silhouette_score
from sklearn.preprocessing import normalize

from eosin.metrics.embeddings import as_matrix, nearest_of_others


@dataclass(frozen=True)
class NeighbourCounts:
    """Of all (sample, neighbour) pairs, how many are of the same class or another, and the same centre or
    another."""

    same_class_same_centre: int
    same_class_other_centre: int
    other_class_same_centre: int
    other_class_other_centre: int

    def __add__(self, other: "NeighbourCounts") -> "NeighbourCounts":
        return NeighbourCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def total(self) -> int:
        """All pairs."""
        return sum(astuple(self))

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
    unit = normalize(matrix)
    own = [str(i) for i in range(len(unit))] if groups is None else groups
    if not len(unit) == len(classes) == len(centres) == len(own):
        raise ValueError(f"{len(classes)} classes, {len(centres)} centres for {len(unit)} embeddings")
    codes = [np.unique(np.asarray(names), return_inverse=True)[1] for names in (classes, centres, own)]
    counts = np.zeros((2, 2), dtype=np.int64)
    for start, nearest, is_other in nearest_of_others(unit, codes[2], min(k, len(unit) - 1)):
        rows = slice(start, start + len(nearest))
        same_class, same_centre = (
            (code[nearest] == code[rows, None])[is_other].astype(np.int64) for code in codes[:2]
        )
        counts += np.bincount(2 * same_class + same_centre, minlength=4).reshape(2, 2)
    if not counts.sum():
        raise ValueError("no sample has another outside its own group")
    return NeighbourCounts(int(counts[1, 1]), int(counts[1, 0]), int(counts[0, 1]), int(counts[0, 0]))


_SEED, _NUM_CLUSTERS, _CHOICE_STARTS, _TRIAL_STARTS = 1337, range(2, 31), 20, 5


def clustering_score(
    features: npt.NDArray[np.floating], classes: Sequence[str], centres: Sequence[str], *, num_trials: int
) -> float | None:
    """Adjusted Rand index of k-means clusters with the classes, less that with the centres, of [N, D].

    Mean over every two classes from every two centres, and over `num_trials` starts of each; features are
    L2-normalised, and the number of clusters (2 to 30) is that with the best silhouette by cosine; 0 where
    all are equal. None where no two classes come from the same two centres.
    """
    cells = {cell: [i for i, each in enumerate(zip(classes, centres, strict=True)) if each == cell]
             for cell in dict.fromkeys(zip(classes, centres, strict=True))}  # fmt: skip
    pairs = product(combinations(dict.fromkeys(classes), 2), combinations(dict.fromkeys(centres), 2))
    found = []
    for labels, places in pairs:
        names = list(product(labels, places))
        if all(name in cells for name in names):
            rows = np.concatenate([cells[name] for name in names])
            norms = np.maximum(np.sqrt((features[rows] ** 2).sum(axis=1)), 1e-30)[:, None]
            truth, places_of = (np.array([names_of[i] for i in rows]) for names_of in (classes, centres))
            found.append(_clustered(features[rows] / norms, truth, places_of, num_trials))
    return float(np.mean(found)) if found else None


def _clustered(
    unit: npt.NDArray[np.floating],
    classes: npt.NDArray[np.str_],
    centres: npt.NDArray[np.str_],
    num_trials: int,
) -> float:
    def clusters(count: int, seed: int, num_starts: int) -> npt.NDArray[np.int32]:
        made = KMeans(count, init="random", n_init=num_starts, random_state=seed).fit(unit)
        return np.asarray(made.labels_)

    if not np.ptp(unit, axis=0).any():
        return 0.0
    counts = [count for count in _NUM_CLUSTERS if count < len(unit)]
    silhouettes = [
        silhouette_score(unit, clusters(count, _SEED, _CHOICE_STARTS), metric="cosine") for count in counts
    ]
    best = counts[int(np.argmax(silhouettes))]
    trials = (clusters(best, _SEED + trial, _TRIAL_STARTS) for trial in range(num_trials))
    return float(np.mean([adjusted_rand_score(classes, c) - adjusted_rand_score(centres, c) for c in trials]))


@dataclass(frozen=True)
class DropDesign:
    """Training sets in which class and centre become one, split by split; the first is balanced."""

    centres: tuple[str, ...]
    classes: tuple[str, ...]
    num_splits: int
    patches_per_slide: int
    max_slides: int
    """Most slides of a class and centre that a split learns from; one more may be validation."""
    num_slides: Callable[[int, int, int], int]
    """Slides of a split, centre and class, by number, that are learnt from."""


def _num_tcga_slides(split: int, centre: int, label: int) -> int:
    if centre == label:
        return split + 2
    if centre + label == 3:
        return 1 if split % 2 else 2 if split < 3 else 0
    return 2 if split < 2 else 1 if split < 5 else 0


_TCGA_CENTRES = ("Asterand", "Christiana Healthcare", "Roswell Park", "University of Pittsburgh")
_TCGA_CLASSES = (
    "Breast_invasive_carcinoma", "Colon_adenocarcinoma", "Lung_adenocarcinoma",
    "Lung_squamous_cell_carcinoma",
)  # fmt: skip
_ESCA_CLASSES = ("TUMOR", "MUSC_PROP", "SH_OES", "SH_MAG", "REGR_TU", "ADVENT")
DROP_DESIGNS = {
    "pathorob-camelyon": DropDesign(
        ("RUMC", "UMCU"), ("normal", "tumor"), 8, 300, 14,
        lambda split, centre, label: 7 - split if centre == label else 7 + split,
    ),
    "pathorob-tcga": DropDesign(_TCGA_CENTRES, _TCGA_CLASSES, 7, 30, 8, _num_tcga_slides),
    "pathorob-tolkach-esca": DropDesign(
        ("VALSET2_WNS", "VALSET4_CHA_FULL"), _ESCA_CLASSES, 4, 100, 6,
        lambda split, centre, label: 3 - split if (centre == 0) == (label < 3) else 3 + split,
    ),
}  # fmt: skip
_COSTS = 10 ** np.linspace(-8, 4, 15)

TestCases = Mapping[str, Sequence[Sequence[str]]]
"""Of each centre, the lists of slides of which one is drawn for testing."""


def performance_drops(
    features: npt.NDArray[np.floating],
    cells: Mapping[tuple[str, str], Sequence[tuple[int, str]]],
    outside: Sequence[tuple[int, str]],
    design: DropDesign,
    *,
    num_trials: int,
    test_cases: TestCases | None = None,
) -> tuple[list[float], list[float]]:
    """Average performance drop of each trial, in domain and out of it: 0 where shortcuts do no harm.

    `cells`: rows of `features` [N, D] by centre and class, with their slides, `patches_per_slide` side by
    side; `outside`: rows from other centres with their class. Each trial shuffles slides and fits a logistic
    regression a split, its cost chosen on validation; the drop is the mean of balanced accuracy over that of
    the balanced split, less 1. `test_cases`: where slides have patches of several classes.
    """
    order, features = {cell: list(rows) for cell, rows in cells.items()}, features.astype(np.float64)
    drops: tuple[list[float], list[float]] = ([], [])
    for seed in random.Random(1000).sample(range(10_000), num_trials):
        _shuffle(order, design, random.Random(seed), test_cases)
        scores = np.array([
            _split_scores(features, order, outside, design, split) for split in range(design.num_splits)
        ])  # fmt: skip
        for drop, found in zip(drops, (scores[1:] / scores[0]).mean(axis=0) - 1, strict=True):
            drop.append(float(found))
    return drops


def _shuffle(
    order: dict[tuple[str, str], list[tuple[int, str]]],
    design: DropDesign,
    draws: random.Random,
    test_cases: TestCases | None,
) -> None:
    """Slides of each centre and class in another order, those that are tested last."""
    chosen = (
        {c: test_cases[c][draws.randint(0, len(test_cases[c]) - 1)] for c in design.centres}
        if test_cases
        else {}
    )
    for centre, label in product(design.centres, design.classes):
        rows, size = order[centre, label], design.patches_per_slide
        slides = [rows[i : i + size] for i in range(0, len(rows), size)]
        draws.shuffle(slides)
        for case in sorted(chosen.get(centre, ())):
            slides += [slides.pop(i) for i, slide in enumerate(slides) if slide[0][1] == case][:1]
        order[centre, label] = [row for slide in slides for row in slide]


def _split_scores(
    features: npt.NDArray[np.floating],
    order: Mapping[tuple[str, str], Sequence[tuple[int, str]]],
    outside: Sequence[tuple[int, str]],
    design: DropDesign,
    split: int,
) -> list[float]:
    """Balanced accuracy in domain and out of it."""
    parts: tuple[list[tuple[int, int]], ...] = ([], [], [])
    for (i, centre), (j, label) in product(enumerate(design.centres), enumerate(design.classes)):
        rows = [(row, j) for row, _ in order[centre, label]]
        end = design.num_slides(split, i, j) * design.patches_per_slide
        tested = (design.max_slides + 1) * design.patches_per_slide
        for part, chosen in zip(
            parts, (rows[:end], rows[end : end + end // design.max_slides], rows[tested:]), strict=True
        ):
            part += chosen
    others = [(row, design.classes.index(label)) for row, label in outside]
    (x, y), (x_val, y_val), *tests = [
        (features[[row for row, _ in part]], [label for _, label in part]) for part in (*parts, others)
    ]

    def score(cost: float, asked: npt.NDArray[np.floating], truth: list[int]) -> float:
        return float(balanced_accuracy_score(truth, fitted[cost].predict(asked)))

    fitted = {cost: LogisticRegression(C=cost).fit(x, y) for cost in _COSTS}
    best = max(_COSTS, key=lambda cost: score(cost, x_val, y_val))
    return [score(best, *test) for test in tests]
