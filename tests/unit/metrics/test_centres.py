"""The robustness index where the answer is known."""

import json
from collections import defaultdict
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eosin.metrics.centres import DROP_DESIGNS, clustering_score, count_neighbours, performance_drops
from tests.support.robustness import ESCA_CASES, made_set

GOLDEN = json.loads((Path(__file__).parents[2] / "data" / "golden" / "robustness.json").read_text())[
    "pathorob"
]

CLASSES = ["tumour", "tumour", "stroma", "stroma"] * 5
CENTRES = ["a", "b"] * 10


def _embeddings(by: list[str], noise: float = 0.01) -> Any:
    directions = {name: np.eye(2)[i] for i, name in enumerate(sorted(set(by)))}
    random = np.random.default_rng(3)
    return np.array([directions[name] for name in by]) + random.normal(0, noise, (len(by), 2))


def test_neighbours_by_tissue_give_one_and_by_centre_give_nought() -> None:
    tissue = count_neighbours(_embeddings(CLASSES), CLASSES, CENTRES, k=5)
    assert tissue.robustness_index == 1.0
    assert tissue.same_class == 1.0
    assert 0.3 < tissue.same_centre < 0.7
    centre = count_neighbours(_embeddings(CENTRES), CLASSES, CENTRES, k=5)
    assert centre.robustness_index == 0.0
    assert centre.same_centre == 1.0


def test_embeddings_that_know_nothing_stand_between() -> None:
    random = np.random.default_rng(0).normal(size=(400, 16))
    counts = count_neighbours(random, CLASSES * 20, CENTRES * 20, k=10)
    assert counts.robustness_index == pytest.approx(0.5, abs=0.05)
    assert counts.total == 4000


def test_neighbours_of_the_same_patient_are_passed_over() -> None:
    # Each patient has one class and one centre, and its patches are equal.
    patients = [f"p{i // 2}" for i in range(8)]
    classes = ["t", "t", "t", "t", "s", "s", "s", "s"]
    centres = ["a", "a", "b", "b", "a", "a", "b", "b"]
    points = np.repeat([[1, 0.0], [1, 0.3], [0, 1.0], [0.3, 1]], 2, axis=0)
    assert count_neighbours(points, classes, centres, k=1).robustness_index is None
    counts = count_neighbours(points, classes, centres, groups=patients, k=2)
    assert (counts.same_class_other_centre, counts.total) == (16, 16)


def test_fewer_others_than_k_are_all_counted() -> None:
    counts = count_neighbours(np.eye(3), ["a", "a", "b"], ["x", "y", "x"], k=10)
    assert counts.total == 6


@pytest.mark.parametrize(
    ("groups", "message"), [(["p", "p", "p"], "outside its own group"), (["p"], "classes")]
)
def test_what_cannot_be_compared_is_refused(groups: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count_neighbours(np.eye(3), ["a", "a", "b"], ["x", "y", "x"], groups=groups, k=1)


@pytest.mark.parametrize(
    ("name", "table", "k"),
    [("camelyon", "camelyon", 11), ("tcga", "tcga_2x2", 61), ("tolkach_esca", "tolkach_esca_reduced", 46)],
)
def test_the_robustness_index_is_pathorobs(name: str, table: str, k: int) -> None:
    made = made_set(table)
    counts = []
    for subset in {row[0] for row in made.rows} - {"OOD"} if name == "tcga" else [""]:
        part = [i for i, row in enumerate(made.rows) if row[0] == subset or (not subset and row[0] != "OOD")]
        slides, classes, centres = ([made.rows[i][column] for i in part] for column in (1, 3, 4))
        counts.append(count_neighbours(made.features[part], classes, centres, groups=slides, k=k))
    assert reduce(add, counts).robustness_index == pytest.approx(GOLDEN[name]["robustness_index"], abs=1e-6)


@pytest.mark.parametrize("name", ["camelyon", "tolkach_esca"])
def test_the_clustering_score_is_pathorobs(name: str) -> None:
    made = made_set(f"{name}_reduced")
    classes, centres = ([row[column] for row in made.rows] for column in (3, 4))
    score = clustering_score(made.features, classes, centres, num_trials=3)
    assert score == pytest.approx(GOLDEN[name]["clustering_score"], abs=1e-6)
    assert clustering_score(made.features, classes, classes, num_trials=1) is None


@pytest.mark.parametrize(
    ("layout", "name"), [("camelyon", "camelyon"), ("tcga", "tcga"), ("tolkach-esca", "tolkach_esca")]
)
def test_training_sets_of_the_performance_drop_are_pathorobs(layout: str, name: str) -> None:
    design = DROP_DESIGNS[f"pathorob-{layout}"]
    found = [
        [[i, j, design.num_slides(split, i, j)] for i in range(len(design.centres))
         for j in range(len(design.classes))]
        for split in range(design.num_splits)
    ]  # fmt: skip
    assert found == GOLDEN["splits"][name]


@pytest.mark.parametrize(
    ("layout", "name", "table", "trials"),
    [("tcga", "tcga", "tcga_4x4", 2), ("tolkach-esca", "tolkach_esca", "tolkach_esca", 1)],
)
def test_the_average_performance_drop_is_pathorobs(layout: str, name: str, table: str, trials: int) -> None:
    made = made_set(table)
    cells: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    outside = []
    for i, (subset, slide, _, label, centre) in enumerate(made.rows):
        if subset == "OOD":
            outside.append((i, label))
        else:
            cells[centre, label].append((i, slide))
    cases: Any = ESCA_CASES["test"] if name == "tolkach_esca" else None
    drops = performance_drops(
        made.features, cells, outside, DROP_DESIGNS[f"pathorob-{layout}"], num_trials=trials, test_cases=cases
    )
    wanted = GOLDEN[name]["apd_id"], GOLDEN[name]["apd_ood"]
    assert [np.mean(each) for each in drops] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_model_that_gives_everything_one_embedding_clusters_nothing(value: float) -> None:
    features = np.full((40, 8), value, dtype=np.float32)
    assert clustering_score(features, ["a", "b"] * 20, ["x", "x", "y", "y"] * 10, num_trials=2) == 0
