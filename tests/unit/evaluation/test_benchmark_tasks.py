"""PathoROB, PLISM and HEST-Bench in the layouts in which they are published."""

import csv
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import sparse

from eosin.errors import UserError
from eosin.evaluation.datasets.public.hest import open_hest
from eosin.evaluation.evaluate import evaluate
from eosin.records import MetricRecord
from tests.support.evaluation import COLORS, encoded, image, make_config, make_run, quiet_log
from tests.support.public_datasets import table
from tests.support.robustness import COLUMNS, made_set

PAIR = {"Breast_invasive_carcinoma": "red", "Colon_adenocarcinoma": "blue", "Lung_adenocarcinoma": "green"}


def _judge(folder: Path, task: dict[str, Any]) -> MetricRecord:
    run = make_run(folder, make_config([{"name": "t", **task}]))
    return evaluate(run, "random-init", "t", log=quiet_log())


def _pathorob(root: Path, *, leave_out: int = 0) -> dict[str, Any]:
    """PathoROB-tcga as Hugging Face has it, two Parquet files, and the tables of its repository."""
    rows = [row for row in made_set("tcga_2x2").rows if row[0] in ("pair0", "pair1")]
    patches = list(dict.fromkeys(row[1:] for row in rows))[leave_out:]
    pictures = [encoded(image(COLORS[PAIR[patch[2]]], i)) for i, patch in enumerate(patches)]
    images = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(pictures)]
    (root / "images" / "data").mkdir(parents=True)
    for part in range(2):
        chosen = slice(part, None, 2)
        columns = {"image": images[chosen], "subset": ["ID"] * len(patches[chosen])}
        columns |= {name: [patch[i] for patch in patches[chosen]] for i, name in enumerate(COLUMNS[1:])}
        pq.write_table(pa.table(columns), root / "images" / "data" / f"train-0000{part}-of-00002.parquet")
    (root / "images" / "README.md").write_text("PathoROB")
    (root / "metadata").mkdir()
    for name in ("tcga_2x2", "tcga_4x4"):
        with (root / "metadata" / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
    return {"preset": "pathorob-tcga", "dataset": f"file://{root}/images", "metadata": f"file://{root}/metadata",
            "k": 5, "num_clusterings": 2, "num_drop_trials": 0}  # fmt: skip


def test_pathorob_is_read_as_published_and_paired(tmp_path: Path) -> None:
    record = _judge(tmp_path, _pathorob(tmp_path / "data"))
    assert record.status == "ok", record.reason
    assert record.metrics["robustness_index"].mean > 0.95
    assert record.metrics["clustering_score"].mean > 0.8
    assert record.protocol == "pathorob" and record.details.preset == ""
    assert record.details.protocol_changes == (
        "k 5 (PathoROB: 61)", "num_clusterings 2 (PathoROB: 50)", "num_drop_trials 0 (PathoROB: 20)",
    )  # fmt: skip
    # A patch that stands in two pairs is counted in both.
    assert record.details.num_samples == 2 * 4 * 4 * 8 and record.num_patches < record.details.num_samples


def test_patches_that_pathorob_has_and_we_have_not_are_told(tmp_path: Path) -> None:
    task = _pathorob(tmp_path / "data", leave_out=3) | {"num_drop_trials": 1}
    record = _judge(tmp_path, task)
    assert record.status == "ok", record.reason
    assert any("3 of the 256 patches of tcga_2x2.csv are missing" in note for note in record.details.notes)
    assert "performance_drop_in_domain" not in record.metrics
    assert any("no average performance drop" in note for note in record.details.notes)
    (tmp_path / "data" / "metadata" / "tcga_2x2.csv").unlink()
    failed = _judge(tmp_path / "again", task)
    assert failed.status == "failed" and "no tcga_2x2.csv" in failed.reason


@pytest.mark.parametrize("fields", [{"metadata": "s3://a/b"}, {"num_drop_trials": 2}])
def test_designs_and_tables_go_together(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs layout"):
        make_config([{"kind": "centres", "name": "c", "dataset": "s3://a/t.csv", **fields}])


def _scanners(root: Path, rows: list[tuple[str, ...]]) -> str:
    table(root / "t.csv", ("path", "label", "stain", "scanner", "location"), rows)
    return f"file://{root}/t.csv"


def _rows(root: Path) -> list[tuple[str, ...]]:
    """Twelve places by two stains (of which one changes the colour much) and two scanners."""
    (root / "images").mkdir(parents=True)
    rows = []
    for stain, shift in (("GIV", 0), ("MY", 25)):
        for scanner, brighter in (("AT2", 0), ("S60", 3)):
            for place in range(12):
                pixels = np.full((32, 32, 3), 20 * place % 200, dtype=np.int64) + shift + brighter
                pixels[: place + 4, :, 0] = 250 - 15 * place
                path = f"images/{stain}{scanner}{place}.png"
                (root / path).write_bytes(encoded(Image.fromarray(pixels.astype(np.uint8))))
                rows.append((path, "x", stain, scanner, str(place)))
    return rows


def test_the_same_tissue_is_looked_for_over_scanners_and_stains(tmp_path: Path) -> None:
    uri = _scanners(tmp_path / "data", _rows(tmp_path / "data"))
    record = _judge(tmp_path, {"kind": "scanners", "dataset": uri, "top_k": [1, 3]})
    assert record.status == "ok", record.reason
    details = record.details
    assert details.num_slides == 4
    assert details.num_pairs == {"all": 6, "across_scanners": 2, "across_stains": 2, "across_both": 2}
    figures = {name: value.mean for name, value in record.metrics.items()}
    assert figures["top3_accuracy_across_scanners"] > figures["top3_accuracy_across_stains"] - 1e-9
    parts = [figures[name] for name in figures if name != "plism_score"]
    assert figures["plism_score"] == pytest.approx(np.mean(parts)) and len(parts) == 4
    assert details.medians["all"]["cosine_similarity"] == figures["cosine_similarity"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [(*rows[0][:4], ""), *rows[1:]], "has no location"),
        (lambda rows: [*rows, (*rows[0][:4], "3")], "GIV AT2 has the location 3 twice"),
        (lambda rows: rows[:12], "one stain and scanner only"),
        (lambda rows: rows[:15], "share too few locations: 3"),
    ],
)
def test_slides_that_are_not_registered_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    rows = change(_rows(tmp_path / "data"))
    uri = _scanners(tmp_path / "data", rows)
    record = _judge(tmp_path, {"kind": "scanners", "dataset": uri, "top_k": [3]})
    assert record.status == "failed" and message in record.reason


GENES = ("ACTB", "KRT8", "MS4A1")


def _hest(root: Path, *, encoding: str = "csr_matrix", tested: str = "C") -> str:
    """Three samples of 40 spots, one gene of which follows the red of its patch, as HEST-Bench has them."""
    random = np.random.default_rng(8)
    for folder in ("splits", "patches", "adata"):
        (root / folder).mkdir(parents=True)
    for name in "ABC":
        red = random.integers(20, 230, 40)
        pixels = np.full((40, 32, 32, 3), 120, dtype=np.uint8)
        pixels[..., 0] = red[:, None, None]
        codes = [f"{name}{n:03d}" for n in range(40)]
        with h5py.File(root / "patches" / f"{name}.h5", "w") as file:
            file["img"] = pixels
            file["coords"] = np.zeros((40, 2), dtype=np.int64)
            file["barcode"] = np.array(codes, dtype="S8").reshape(-1, 1)
        order = random.permutation(40)
        counts = np.stack([random.poisson(3, 40), red[order] * 3, random.poisson(5, 40)], axis=1)
        path = root / "adata" / f"{name}.h5ad"
        _write_h5ad(path, counts.astype(np.float32), [codes[i] for i in order], encoding)
    for number, left_out in enumerate("ABC"):
        sides = {"train": [n for n in "ABC" if n != left_out], "test": [left_out if number < 2 else tested]}
        for side, names in sides.items():
            rows = [(n, f"patches/{n}.h5", f"adata/{n}.h5ad") for n in names]
            table(root / "splits" / f"{side}_{number}.csv", ("sample_id", "patches_path", "expr_path"), rows)
    (root / "var_50genes.json").write_text(json.dumps({"genes": ["KRT8", "MS4A1"]}))
    return f"file://{root}"


def _write_h5ad(path: Path, counts: Any, codes: list[str], encoding: str) -> None:
    """As anndata 0.12 writes an AnnData of these counts."""
    with h5py.File(path, "w") as file:
        for group, names in (("obs", codes), ("var", list(GENES))):
            frame = file.create_group(group)
            frame.attrs["_index"] = "_index"
            frame["_index"] = names
        if encoding == "array":
            file["X"] = counts
        else:
            made = (sparse.csr_matrix if encoding == "csr_matrix" else sparse.csc_matrix)(counts)
            x = file.create_group("X")
            x.attrs["encoding-type"], x.attrs["shape"] = encoding, made.shape
            x["data"], x["indices"], x["indptr"] = made.data, made.indices, made.indptr


@pytest.mark.parametrize("encoding", ["csr_matrix", "csc_matrix", "array"])
def test_hest_bench_is_read_as_published(tmp_path: Path, encoding: str) -> None:
    dataset = open_hest(_hest(tmp_path / "IDC", encoding=encoding))
    assert dataset.genes == ("KRT8", "MS4A1") and dataset.expression.shape == (120, 2)
    assert [s.folds for s in dataset.samples[::40]] == [
        ("test", "train", "train"), ("train", "test", "train"), ("train", "train", "test"),
    ]  # fmt: skip
    record = _judge(tmp_path, {"kind": "expression", "dataset": dataset.uri})
    assert record.status == "ok", record.reason
    assert len(record.metrics["pearson"].values) == 3
    genes = record.details.pearson_by_gene
    assert genes["KRT8"] > 0.8 > abs(genes["MS4A1"]) + 0.3
    assert record.details.interval_over == "3 splits of 3 samples" and "pearson" in record.details.intervals


def test_what_is_no_task_of_hest_bench_is_named(tmp_path: Path) -> None:
    uri = _hest(tmp_path / "IDC", tested="A")
    with pytest.raises(UserError, match="sample A is on both sides of split 2"):
        open_hest(uri)
    (tmp_path / "IDC" / "splits" / "test_2.csv").write_text("sample_id,patches_path,expr_path\n")
    (tmp_path / "IDC" / "var_50genes.json").write_text(json.dumps({"genes": ["KRT8", "TP53"]}))
    with pytest.raises(UserError, match="has no TP53"):
        open_hest(uri)
    (tmp_path / "IDC" / "adata" / "A.h5ad").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="a Git LFS pointer"):
        open_hest(uri)
    (tmp_path / "IDC" / "splits" / "train_0.csv").unlink()
    (tmp_path / "IDC" / "splits" / "train_1.csv").unlink()
    (tmp_path / "IDC" / "splits" / "train_2.csv").unlink()
    with pytest.raises(UserError, match="no splits/train_0"):
        open_hest(uri)


@pytest.mark.parametrize(("value", "told"), [(np.nan, "nan"), (-2.0, "-2"), (np.inf, "inf")])
def test_expression_that_is_no_count_is_named(tmp_path: Path, value: float, told: str) -> None:
    uri, path = _hest(tmp_path / "IDC", encoding="array"), tmp_path / "IDC" / "adata" / "B.h5ad"
    with h5py.File(path, "r+") as file:
        code = file["obs/_index"][7].decode()
        file["X"][7, 2] = value
    with pytest.raises(UserError, match=rf"adata/B\.h5ad: MS4A1 of {code} is {told}, no count"):
        open_hest(uri)
