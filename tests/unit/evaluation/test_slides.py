"""The slide task end to end: a table of slides, patches of our own, one record."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from eosin.errors import UserError
from eosin.evaluation.datasets.slide_dataset import SLIDES, open_slides, stratified_split
from eosin.evaluation.evaluate import evaluate
from eosin.records import MetricRecord
from tests.support.evaluation import make_config, make_run, quiet_log
from tests.support.labelled_slides import ABMIL, KINDS, write_labelled_slides, write_labels
from tests.support.public_datasets import table


def _task(dataset: str, **fields: Any) -> dict[str, Any]:
    task = {"kind": "slide", "name": "kinds", "dataset": dataset, "patch_px": 64, "num_patches": 6}
    return {**task, "abmil": ABMIL, **fields}


def _judge(folder: Path, dataset: str, **fields: Any) -> MetricRecord:
    run = make_run(folder, make_config([_task(dataset, **fields)]))
    return evaluate(run, "random-init", "kinds", log=quiet_log())


def test_slides_are_told_apart_by_their_patches_and_stored_once(tmp_path: Path) -> None:
    dataset = write_labelled_slides(tmp_path / "slides")
    record = _judge(tmp_path, dataset)
    assert record.status == "ok", record.reason
    assert record.metrics["balanced_accuracy"].mean > 0.9
    assert len(record.metrics["balanced_accuracy"].values) == ABMIL["num_runs"]
    details = record.details
    assert (details.num_train, details.num_val, details.num_judged) == (6, 6, 6)
    assert details.patches_per_slide.max == 6 > details.patches_per_slide.min
    assert any("num_epochs 12 (eva: 100)" in change for change in details.protocol_changes)
    stored = list((tmp_path / "run" / "embeddings").rglob("*.safetensors"))
    assert len(stored) == 18
    sizes = [len(safetensors.numpy.load_file(path)["features"]) for path in stored]
    assert sum(sizes) == record.num_patches
    # A second task of the same patches reads them: a damaged one alone is made again.
    before = {path: path.stat().st_mtime_ns for path in stored}
    stored[0].write_bytes(b"damaged")
    run = f"file://{tmp_path}/run"
    (tmp_path / "run" / "metrics" / "random-init" / "kinds.json").unlink()
    again = evaluate(run, "random-init", "kinds", log=quiet_log())
    assert again.metrics == record.metrics
    changed = [path for path in stored if path.stat().st_mtime_ns != before[path]]
    assert changed == [stored[0]]
    assert len(safetensors.numpy.load_file(stored[0])["features"]) == sizes[0]


def test_a_slide_that_is_bad_missing_or_empty_is_named_and_the_rest_judged(tmp_path: Path) -> None:
    dataset = write_labelled_slides(tmp_path / "slides")
    (tmp_path / "slides" / "pink_train_0.svs").write_bytes(b"no slide at all")
    (tmp_path / "slides" / "violet_train_1.svs").unlink()
    record = _judge(tmp_path, dataset, name="kinds")
    assert record.status == "ok", record.reason
    dropped = {Path(each.source).name: each.reason for each in record.details.dropped}
    assert dropped.keys() == {"pink_train_0.svs", "violet_train_1.svs"}
    assert "missing" in dropped["violet_train_1.svs"]
    assert (record.details.num_train, record.details.num_dropped) == (4, 2)


def test_no_slide_there_is_one_clear_failure(tmp_path: Path) -> None:
    rows = [{"slide": f"{kind}.svs", "label": kind} for kind in KINDS]
    (tmp_path / "slides").mkdir()
    dataset = write_labels(tmp_path / "slides" / "labels.csv", rows)
    record = _judge(tmp_path, dataset)
    assert record.status == "failed"
    assert "none of the 2 slides" in record.reason and "pink.svs: the slide is missing" in record.reason


def test_a_slide_under_two_names_is_refused(tmp_path: Path) -> None:
    write_labelled_slides(tmp_path / "slides", per_split=1)
    names = ("pink_train_0.svs", "violet_train_0", "pink_train_0")
    table = write_labels(tmp_path / "slides" / "labels.csv", [{"slide": n, "label": n[:1]} for n in names])
    record = _judge(tmp_path, table)
    assert record.status == "failed"
    assert "names one slide 2 times: pink_train_0.svs, pink_train_0" in record.reason


def test_one_class_is_refused(tmp_path: Path) -> None:
    dataset = write_labelled_slides(tmp_path / "slides", per_split=1)
    path = tmp_path / "slides" / "labels.csv"
    path.write_text(path.read_text().replace(",violet,", ",pink,"))
    record = _judge(tmp_path, dataset)
    assert record.status == "failed" and "one class only" in record.reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,grade\na.svs,1\n", "lacks the column.*label"),
        ("slide,label\na.svs,1\na.svs,0\n", "names a.svs twice"),
        ("slide,label,split\na.svs,1,held\n", "row 2: split 'held' is not one of train, val, test"),
        ("slide,label\n,1\n", "row 2: no slide is named"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        open_slides(f"file://{tmp_path}/labels.csv")


def test_tcga_slides_carry_their_patient(tmp_path: Path) -> None:
    (tmp_path / "tp53.csv").write_text(
        "slide,label\nx/TCGA-38-6178-01Z-00-DX1.svs,mutated\nTCGA-38-6178-01A-01-TS1.svs,mutated\nother.svs,wild\n"
    )
    dataset = open_slides(f"file://{tmp_path}/tp53.csv")
    assert [s.patient for s in dataset.samples] == ["TCGA-38-6178", "TCGA-38-6178", ""]


def _camelyon(root: Path) -> None:
    for name in ("normal_001", "normal_010", "tumor_005", "tumor_006"):
        path = root / "CAMELYON16" / "training" / name.split("_")[0] / f"{name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"slide")
    images = root / "CAMELYON16" / "testing" / "images"
    images.mkdir(parents=True)
    for name in ("test_001", "test_002"):
        (images / f"{name}.tif").write_bytes(b"slide")
    reference = root / "CAMELYON16" / "testing" / "reference.csv"
    reference.write_text("test_001,Tumor,IDC,Macro\ntest_002,Normal,None,None\n")


def test_camelyon16_is_read_as_published(tmp_path: Path) -> None:
    _camelyon(tmp_path)
    with pytest.raises(UserError, match="train has 2 slides, 216 expected"):
        SLIDES["camelyon16"].open(f"file://{tmp_path}")
    dataset = SLIDES["camelyon16"].open(f"file://{tmp_path}", allow_subset=True)
    assert {Path(s.source).stem: (s.label, s.split) for s in dataset.samples} == {
        "normal_001": ("normal", "train"),
        "normal_010": ("normal", "val"),
        "tumor_005": ("tumor", "val"),
        "tumor_006": ("tumor", "train"),
        "test_001": ("tumor", "test"),
        "test_002": ("normal", "test"),
    }
    (tmp_path / "CAMELYON16/testing/reference.csv").write_text("test_001,Tumor\n")
    with pytest.raises(UserError, match="nothing of test_002"):
        SLIDES["camelyon16"].open(f"file://{tmp_path}", allow_subset=True)


def test_panda_leaves_noisy_slides_out_and_a_missing_one_moves_no_other(tmp_path: Path) -> None:
    names = [f"{n:032x}" for n in range(60)]
    rows = [(n, names[n], n % 6, int(n % 10 != 0)) for n in range(60)]
    table(tmp_path / "train_with_noisy_labels.csv", ("", "image_id", "isup_grade", "noise_ratio_10"), rows)
    (tmp_path / "train_images").mkdir()
    for name in names:
        (tmp_path / "train_images" / f"{name}.tiff").write_bytes(b"slide")
    whole = SLIDES["panda"].open(f"file://{tmp_path}", allow_subset=True)
    assert len(whole.samples) == 54
    split = {s.source: s.split for s in whole.samples}
    (tmp_path / "train_images" / f"{names[1]}.tiff").unlink()
    part = SLIDES["panda"].open(f"file://{tmp_path}", allow_subset=True)
    assert len(part.samples) == 53
    assert {s.source: s.split for s in part.samples}.items() <= split.items()


def test_the_stratified_split_keeps_shares_in_every_class() -> None:
    classes = np.repeat([0, 1, 2], [100, 40, 7]).tolist()
    split = stratified_split(classes, (0.7, 0.15, 0.15))
    assert Counter(zip(classes, split, strict=True)) == {
        (0, "train"): 70, (0, "val"): 15, (0, "test"): 15,
        (1, "train"): 28, (1, "val"): 6, (1, "test"): 6,
        (2, "train"): 4, (2, "val"): 1, (2, "test"): 2,
    }  # fmt: skip
    small = Counter(stratified_split(classes, (0.1, 0.05, 0.05)))
    assert (small["train"], small["val"], small["test"]) == (15, 8, 8)
