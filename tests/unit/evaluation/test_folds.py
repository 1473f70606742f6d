"""Folds and patients: Patho-Bench's tables as they are, drawn folds, linear heads on pooled slides."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from eosin.errors import UserError
from eosin.evaluation.datasets.open_dataset import open_dataset
from eosin.evaluation.datasets.slide_dataset import by_patient, open_slides, open_survival
from eosin.evaluation.datasets.splits import folds_of, split_samples, with_folds
from eosin.evaluation.evaluate import evaluate
from eosin.evaluation.heads.linear import logistic_regression
from eosin.metrics.intervals import interval_over_folds
from eosin.metrics.significance import significance
from eosin.records import MetricRecord
from tests.support.evaluation import COLORS, encoded, image, make_config, make_run, quiet_log
from tests.support.labelled_slides import write_labelled_slides
from tests.support.public_datasets import table

# As on Hugging Face, MahmoodLab/Patho-Bench: nadt/response/config.yaml, mut-het-rcc/BAP1_mutation/k=all.tsv.
CONFIG = """datasets:
- nadt
task_col: response
extra_cols: []
task_type: classification
metrics:
- macro-ovr-auc
label_dict:
  0: negative
  1: positive
sample_col: case_id
num_samples: 9
"""


def _patho_bench(root: Path, *, config: str = CONFIG) -> str:
    """Six patients of three slides each, in three folds, as Patho-Bench's table names them."""
    write_labelled_slides(root, per_split=3)
    lines = ["\t".join(["case_id", "slide_id", "response", "fold_0", "fold_1", "fold_2"])]
    for i, split in enumerate(("train", "val", "test")):
        for n in range(3):
            for kind, label in (("pink", 0), ("violet", 1)):
                folds = ["test" if fold == i else "train" for fold in range(3)]
                lines.append("\t".join([f"{kind}{i}", f"{kind}_{split}_{n}", str(label), *folds]))
    (root / "k=all.tsv").write_text("\n".join(lines) + "\n")
    (root / "config.yaml").write_text(config)
    return f"file://{root}/k=all.tsv"


def _judge(folder: Path, task: dict[str, Any]) -> MetricRecord:
    run = make_run(folder, make_config([{"name": "t", **task}]))
    return evaluate(run, "random-init", "t", log=quiet_log())


def test_a_table_of_patho_bench_is_judged_by_patient_and_fold(tmp_path: Path) -> None:
    dataset = _patho_bench(tmp_path / "slides")
    task = {"kind": "slide", "dataset": dataset, "head": "linear", "patch_px": 64, "num_patches": 6}
    record = _judge(tmp_path, task)
    assert record.status == "ok", record.reason
    details = record.details
    assert details.classes == ("negative", "positive") and details.unit == "patients"
    assert (details.num_folds, details.num_judged) == (3, 6)
    assert len(record.metrics["balanced_accuracy"].values) == 3
    assert details.interval_over == "3 folds of 6 patients"
    assert set(details.group_confusions) == {f"{kind}{i}" for kind in ("pink", "violet") for i in range(3)}
    assert np.sum(details.confusion) == 6  # each patient is one bag, judged once
    test = significance(record, record, "balanced_accuracy")
    assert test is not None and (test.num_groups, test.unit, test.p_value) == (6, "patients", 1.0)


def test_slides_of_one_patient_must_agree(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("slide,label,patient\na.svs,x,p\nb.svs,y,p\nc.svs,x,q\n")
    dataset = open_slides(f"file://{tmp_path}/t.csv")
    with pytest.raises(UserError, match="slides of patient p differ in label"):
        by_patient(dataset)
    (tmp_path / "s.csv").write_text("slide,time,event,patient\na.svs,1,1,p\nb.svs,2,1,p\n")
    with pytest.raises(UserError, match="slides of patient p differ"):
        open_survival(f"file://{tmp_path}/s.csv")


def test_patients_lie_side_by_side_whatever_the_order_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("slide,label,patient\na.svs,x,p\nb.svs,y,q\nc.svs,x,p\nd.svs,y,\n")
    found = by_patient(open_slides(f"file://{tmp_path}/t.csv"))
    assert [s.source for s in found.samples] == ["d.svs", "a.svs", "c.svs", "b.svs"] and found.is_of_patients


@pytest.mark.parametrize(
    "text", ["[]", "task_col: x", "a: [", "task_col: x\nsample_col: case_id\nlabel_dict: 3"]
)
def test_another_task_file_is_named(tmp_path: Path, text: str) -> None:
    dataset = _patho_bench(tmp_path, config=text)
    with pytest.raises(UserError, match="is not a task of Patho-Bench"):
        open_slides(dataset)


def _images(root: Path, *, folds: bool) -> str:
    rows, seed = [], 0
    (root / "images").mkdir(parents=True)
    for name in ("red", "blue"):
        for patient in range(4):
            for _ in range(2):
                seed += 1
                (root / "images" / f"{seed}.png").write_bytes(encoded(image(COLORS[name], seed)))
                given = ["test" if fold == patient else "train" for fold in range(4)] if folds else []
                rows.append((f"images/{seed}.png", name, f"{name}{patient}", *given))
    columns = ("Path", "Label", "Patient", *(["fold_0", "fold_1", "fold_2", "fold_3"] if folds else []))
    table(root / "t.csv", columns, rows)
    return f"file://{root}/t.csv"


@pytest.mark.parametrize("kind", ["knn", "linear-probe", "few-shot"])
@pytest.mark.parametrize("given", [True, False])
def test_every_head_on_images_takes_given_or_drawn_folds(tmp_path: Path, kind: str, given: bool) -> None:
    task: dict[str, Any] = {"kind": kind, "dataset": _images(tmp_path / "data", folds=given)}
    task |= {} if given else {"folds": 4}
    task |= {"probe": {"num_steps": 60, "num_runs": 2}} if kind == "linear-probe" else {}
    record = _judge(tmp_path, task)
    assert record.status == "ok", record.reason
    value, details = record.metrics["balanced_accuracy"], record.details
    assert len(value.values) == 4 and details.num_folds == 4 and details.num_judged == 16
    assert details.interval_over == "4 folds of 8 patients"
    assert details.intervals["balanced_accuracy"] == pytest.approx(interval_over_folds(value.values, 4 / 12))
    assert sum(map(sum, details.confusion)) == 16 * {"knn": 1, "linear-probe": 2, "few-shot": 50}[kind]


def test_drawn_folds_test_every_patient_once_in_any_order(tmp_path: Path) -> None:
    dataset = open_dataset(_images(tmp_path / "data", folds=False))
    found = with_folds(dataset, 4)
    tested: dict[str, set[int]] = {}
    for fold, each in enumerate(folds_of(found)):
        split = split_samples(each.samples)
        assert len({each.samples[i].label for i in split.test}) == 2
        for i in split.test:
            tested.setdefault(each.samples[i].patient, set()).add(fold)
    assert len(tested) == 8 and all(len(folds) == 1 for folds in tested.values())
    turned = with_folds(replace(dataset, samples=dataset.samples[::-1]), 4)
    assert turned.samples[::-1] == found.samples
    with pytest.raises(UserError, match="5 folds of a class with 4 patient"):
        with_folds(dataset, 5)
    with pytest.raises(UserError, match="has folds of its own"):
        with_folds(found, 4)


def test_the_interval_over_folds_is_nadeau_and_bengios() -> None:
    values = (0.71, 0.64, 0.80, 0.69, 0.74)
    low, high = interval_over_folds(values, 0.25)
    spread = np.std(values, ddof=1) * np.sqrt(1 / 5 + 0.25)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 4, loc=np.mean(values), scale=spread))
    assert interval_over_folds((0.9, 1.0, 1.0), 0.5)[1] == 1.0


def test_the_linear_head_is_patho_benchs() -> None:
    random = np.random.default_rng(2)
    features, classes = random.normal(size=(60, 8)), random.integers(0, 3, 60)
    features[np.arange(60), classes] += 2
    model = LogisticRegression(C=1, max_iter=10_000, random_state=0).fit(features[:40], classes[:40])
    found = logistic_regression(features[:40], classes[:40], features[40:], num_classes=4, cost=1.0)
    assert np.allclose(found[:, :3], model.predict_proba(features[40:])) and not found[:, 3].any()
    assert balanced_accuracy_score(classes[40:], found.argmax(axis=1)) > 0.6


@pytest.mark.parametrize("sides", [("train", "train"), ("test", "test"), ("", "")])
def test_a_fold_of_one_side_is_not_drawn_anew(tmp_path: Path, sides: tuple[str, str]) -> None:
    lines = [f"{n}.png,{'ab'[n % 2]},{('train', 'test')[n > 3]},{sides[n > 3]}" for n in range(8)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,fold_0,fold_1", *lines, "8.png,,train,test"]))
    with pytest.raises(UserError, match=r"t\.csv: fold 1 has nothing labelled to learn from, or"):
        folds_of(open_dataset(f"file://{tmp_path}/t.csv"))


def test_a_fold_that_cannot_be_judged_is_named(tmp_path: Path) -> None:
    dataset = _images(tmp_path / "data", folds=True)
    path = tmp_path / "data" / "t.csv"
    lines = [line for line in path.read_text().splitlines() if "blue2" not in line]
    path.write_text("\n".join(lines) + "\n")
    record = _judge(tmp_path, {"kind": "knn", "dataset": dataset})
    assert record.status == "failed"
    assert "fold 2: the test split has 2 readable images of 1 class (red)" in record.reason


def test_the_interval_of_a_figure_that_may_be_negative_is_not_cut_at_nought() -> None:
    values = (-0.2, 0.05, 0.3, 0.1, 0.2)
    assert interval_over_folds(values, 0.25, low=-1)[0] < -0.2
    assert interval_over_folds(values, 0.25)[0] == 0


def test_folds_that_are_all_right_are_not_certain() -> None:
    low, high = interval_over_folds((1.0,) * 5, 0.25)
    assert (low, high) == pytest.approx((0.025 ** (1 / 5), 1.0))
    low, high = interval_over_folds((0.6,) * 5, 0.25, low=-1)
    assert low == pytest.approx(-1 + 2 * stats.binomtest(4, 5).proportion_ci().low) and high > 0.9


def test_a_fold_without_a_class_says_why_there_is_no_auroc(tmp_path: Path) -> None:
    dataset, path = _images(tmp_path / "data", folds=True), tmp_path / "data" / "t.csv"
    path.write_text(path.read_text().replace("blue,blue1,train,test", "blue,blue1,train,train"))
    text = path.read_text().replace("red,red1,train,test", "green,red1,train,test", 1)
    path.write_text(text)
    record = _judge(tmp_path, {"kind": "knn", "dataset": dataset})
    assert record.status == "ok" and "auroc" not in record.metrics, record.reason
    assert any("in the judged split, hence no AUROC" in note for note in record.details.notes)
