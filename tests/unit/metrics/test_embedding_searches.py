"""SimpleShot and retrieval against slow, obvious versions, and the tasks made of them."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

from eosin.evaluation.evaluate import evaluate
from eosin.metrics.embeddings import retrieval_figures, retrieval_hits, simple_shot
from tests.support.evaluation import (
    make_config,
    make_run,
    patch_rows,
    quiet_log,
    write_folder,
    write_patch_set,
)


def test_all_shots_are_the_nearest_centroid() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(40) % 4
    bank = random.normal(size=(40, 6)) + 2 * np.eye(6)[labels]
    queries = random.normal(size=(30, 6))
    chances = simple_shot(bank, labels, queries, shots=10, seed=1)
    mean = bank.mean(axis=0)
    wanted = NearestCentroid().fit(normalize(bank - mean), labels).predict(normalize(queries - mean))
    assert (chances.argmax(axis=1) == wanted).all()
    assert np.allclose(chances.sum(axis=1), 1)
    few = [simple_shot(bank, labels, queries, shots=2, seed=s) for s in (1, 1, 2)]
    assert (few[0] == few[1]).all() and (few[0] != few[2]).any()


@pytest.mark.parametrize("k", [1, 3, 5])
def test_retrieval_looks_at_other_patients_alone(k: int) -> None:
    random = np.random.default_rng(k)
    features, classes = random.normal(size=(50, 7)), random.integers(0, 3, 50)
    groups = [f"p{i % 9}" for i in range(50)]
    votes, hits = retrieval_hits(features, classes, groups=groups, k=k)
    figures = retrieval_figures(votes, hits, classes)
    for i in range(50):
        cosine = features @ features[i] / np.linalg.norm(features, axis=1) / np.linalg.norm(features[i])
        nearest = [j for j in np.argsort(-cosine) if groups[j] != groups[i]][:k]
        seen = [bool(classes[j] == classes[i]) for j in nearest]
        assert votes[i].tolist() == classes[nearest].tolist()
        precisions = [sum(seen[: n + 1]) / (n + 1) for n in range(k) if seen[n]]
        assert figures["map_at_k"][i] == pytest.approx(np.mean(precisions) if precisions else 0.0)
        assert figures["top1"][i] == seen[0]
    with pytest.raises(ValueError, match="of other patients"):
        retrieval_hits(features, classes, groups=["p"] * 50, k=1)


def test_few_shots_and_retrieval_of_images_are_records(tmp_path: Path) -> None:
    own = write_folder(tmp_path / "set", {"train": {"red": 6, "blue": 6}, "test": {"red": 4, "blue": 4}})
    rows = write_patch_set(tmp_path / "patches", patch_rows(num_patients=8))
    tasks = [
        {"kind": "few-shot", "name": "shots", "dataset": own, "shots": [1, 4, 99], "num_draws": 5},
        {"kind": "retrieval", "name": "search", "dataset": rows, "k": 3},
    ]
    run = make_run(tmp_path, make_config(tasks))
    shots, search = (evaluate(run, "random-init", name, log=quiet_log()) for name in ("shots", "search"))
    assert shots.status == "ok", shots.reason
    assert len(shots.metrics["balanced_accuracy_1_shot"].values) == 5
    assert shots.metrics["balanced_accuracy"] == shots.metrics["balanced_accuracy_4_shot"]
    assert any("[99] shots" in note for note in shots.details.notes)
    assert search.status == "ok", search.reason
    assert {"map_at_k", "top1", "majority_vote"} == set(search.metrics)
    assert search.details.interval_over == "8 patients" and "map_at_k" in search.details.intervals
