"""Golden values of the robustness benchmarks' own code, on the made data of tests/support/robustness.py.

In an environment with pandas 2, scikit-learn, matplotlib, tqdm and loguru (the package never needs it), with
checkouts of bifold-pathomics/PathoROB (46594e9), owkin/plism-benchmark (8ec152a), mahmoodlab/HEST (afd42c3):

    PYTHONPATH=.:PATHOROB:PLISM:HEST/src/hest/bench python benchmarks/peers/robustness_golden.py \\
        tests/data/golden/robustness.json
"""

import csv
import json
import sys
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.robustness import (
    COLUMNS,
    ESCA_CASES,
    made_expression,
    made_set,
    made_slides,
)

TABLES = (
    "camelyon", "camelyon_reduced", "tcga_2x2", "tcga_4x4", "tolkach_esca", "tolkach_esca_reduced",
)  # fmt: skip


def main(target: Path) -> None:
    """Write every golden value to `target`."""
    with tempfile.TemporaryDirectory() as folder:
        values = {"pathorob": pathorob(Path(folder)), "plism": plism(), "hest": hest()}
    target.write_text(json.dumps(values) + "\n")


def pathorob(folder: Path) -> dict[str, Any]:
    """Index, clustering score and performance drops of the three sets."""
    from pathorob import resources
    from pathorob.apd import apd
    from pathorob.apd.utils import get_patches_map_to_split
    from pathorob.clustering_score import clustering_score
    from pathorob.robustness_index import robustness_index

    (Path(str(resources.__path__[0])) / "tolkach_splits.json").write_text(json.dumps(ESCA_CASES))
    found: dict[str, Any] = {"splits": {
        name: [get_patches_map_to_split(name, split, 1)[0] for split in range(num)]
        for name, num in (("camelyon", 8), ("tcga", 7), ("tolkach_esca", 4))
    }}  # fmt: skip
    common = {"features_dir": str(folder / "features"), "metadata_dir": str(folder / "metadata")}
    for table in TABLES:
        made = made_set(table)
        (folder / "metadata").mkdir(exist_ok=True)
        with (folder / "metadata" / f"{table}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *made.rows])
    for name, index, clustering in (
        ("camelyon", "camelyon", "camelyon_reduced"),
        ("tcga", "tcga_2x2", None),
        ("tolkach_esca", "tolkach_esca_reduced", "tolkach_esca_reduced"),
    ):
        _save(folder / "features" / "made" / name, index)
        results = folder / name
        robustness_index.compute(
            "made", name, results_dir=str(results), figures_subdir="fig", num_workers=1, **common
        )
        summary = next(results.rglob("results_summary.json"))
        found[name] = {"robustness_index": json.loads(summary.read_text())["robustness_index"]}
        if clustering:
            made_results = clustering_score.compute(
                "made", name, results_dir=str(folder / "clusters"), num_trials=3, maxK=30, **common
            )
            found[name]["clustering_score"] = made_results["clustering_score_mean"]
    for name, table, trials in (("tcga", "tcga_4x4", 2), ("tolkach_esca", "tolkach_esca", 1)):
        _save(folder / "features" / "made" / name, table)
        apd.compute("made", name, results_dir=str(folder / "apd"), iterations=trials, **common)
        summary = folder / "apd" / "made" / f"{name}_summary.json"
        found[name] |= {k: v for k, v in json.loads(summary.read_text()).items() if k.startswith("apd")}
    return found


def _save(folder: Path, table: str) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    made = made_set(table)
    chunks: dict[str, dict[str, Any]] = {}
    for row, features in zip(made.rows, made.features, strict=True):
        chunks.setdefault(row[4].replace(" ", "_"), {})[f"{row[1]}-{row[2]}"] = features
    for centre, arrays in chunks.items():
        np.savez(folder / f"{centre}.npz", **arrays)


def plism() -> dict[str, Any]:
    """Cosine similarity and top-k accuracies of every pair of slides, in float32, and their aggregate."""
    import pandas
    from plismbench.metrics.cosine_similarity import CosineSimilarity
    from plismbench.metrics.retrieval import TopkAccuracy
    from plismbench.utils.aggregate import get_results

    slides, rows = made_slides(), []
    cosine = CosineSimilarity("cpu", use_mixed_precision=False)
    top_k = TopkAccuracy("cpu", use_mixed_precision=False, k=[1, 3, 5, 10])
    for (a, first), (b, second) in combinations(slides.items(), 2):
        accuracies = top_k.compute_metric(first, second)
        rows.append((*a, *b, cosine.compute_metric(first, second), *map(float, accuracies)))
    names = ["staining_a", "scanner_a", "staining_b", "scanner_b", "cosine_similarity",
             "top_1_accuracy", "top_3_accuracy", "top_5_accuracy", "top_10_accuracy"]  # fmt: skip
    table = pandas.DataFrame(rows, columns=names)
    return {"pairs": rows, "results": get_results(table, [1, 3, 5, 10]).to_dict(orient="index")}


def hest() -> dict[str, Any]:
    """HEST-Bench's PCA and ridge: Pearson's correlation of each gene, their mean and deviation."""
    from sklearn.decomposition import PCA
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler
    from trainer import train_test_reg

    x_train, x_test, y_train, y_test = made_expression()
    pipe = Pipeline([("scaler", StandardScaler()), ("PCA", PCA(n_components=256, random_state=1))])
    # benchmark.py makes tensors of both, which are float32.
    x_train, x_test = (
        each.astype(np.float32) for each in (pipe.fit_transform(x_train), pipe.transform(x_test))
    )
    results, _ = train_test_reg(x_train, x_test, y_train, y_test, random_state=1, genes=list("ABCDE"))
    return {key: results[key] for key in ("pearson_corrs", "pearson_mean", "pearson_std")}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
