"""Patients of a labelled set among the pretraining slides."""

from dataclasses import replace
from pathlib import Path

import pytest

from eosin.evaluation.datasets.open_dataset import open_dataset
from eosin.evaluation.evaluate import evaluate, leakage_note, leaked_patients
from eosin.storage import open_store
from tests.support.evaluation import export, make_config, make_run, patch_rows, quiet_log, write_patch_set
from tests.support.summary import fake_run, slide_rows, write_index


def _leaked(run: str, folder: Path, prefix: str) -> tuple[str, ...]:
    rows = [
        replace(row, patient=f"{prefix}{row.patient[1:]}") for row in patch_rows(num_patients=7, per_class=1)
    ]
    return leaked_patients(run, open_dataset(write_patch_set(folder / prefix, rows)))


def test_patients_of_training_slides_are_named(tmp_path: Path) -> None:
    """Seven slides of patients p0 … p6: those held out are not trained on, so they do not leak."""
    leaked = _leaked(fake_run(tmp_path), tmp_path, "p")
    assert leaked
    assert set(leaked) < {f"p{i}" for i in range(7)}
    assert leaked[0] in leakage_note(leaked)


def test_other_patients_and_unknown_ones_do_not_leak(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    assert _leaked(run, tmp_path, "q") == ()
    rows = patch_rows(num_patients=2, patient="")
    assert leaked_patients(run, open_dataset(write_patch_set(tmp_path / "none", rows))) == ()


def test_where_nothing_is_held_out_every_slide_counts(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    write_index(open_store(run), f"file://{tmp_path}/index", [replace(slide_rows()[1], patient="p1")])
    assert _leaked(run, tmp_path, "p") == ("p1",)


@pytest.mark.parametrize("lost", ["index.json"])
def test_without_an_index_nothing_can_be_said(tmp_path: Path, lost: str) -> None:
    run = fake_run(tmp_path)
    open_store(run).delete([lost])
    assert _leaked(run, tmp_path, "p") == ()


def test_a_tcga_file_name_says_whose_slide_it_is(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    row = replace(slide_rows()[1], slide="kirc/TCGA-38-6178-01Z-00-DX1.svs", patient="")
    write_index(open_store(run), f"file://{tmp_path}/index", [row])
    monuseg = tmp_path / "monuseg"
    monuseg.mkdir()
    (monuseg / "t.csv").write_text(
        "path,label\nTCGA-38-6178-01Z-00-DX1.tif,a\nTCGA-18-5592-01Z-00-DX1.tif,b\n"
    )
    assert leaked_patients(run, open_dataset(f"file://{monuseg}/t.csv")) == ("TCGA-38-6178",)


def test_a_teacher_of_another_run_has_seen_that_runs_slides(tmp_path: Path) -> None:
    trained = fake_run(tmp_path)
    rows = [replace(row, patient=f"p{i % 7}") for i, row in enumerate(patch_rows(num_patients=7))]
    dataset = write_patch_set(tmp_path / "set", rows)
    config = make_config([{"kind": "knn", "name": "knn", "dataset": dataset}])
    export(trained, config, 3)
    judging = make_run(tmp_path / "other", config)
    record = evaluate(judging, f"{trained}/teachers/step-00000003", "knn", log=quiet_log())
    assert record.status == "ok", record.reason
    leaked = record.details.leaked_patients
    assert leaked and set(leaked) < {f"p{i}" for i in range(7)}
    assert any(leaked[0] in note for note in record.details.notes)


def test_a_teacher_without_its_run_says_nothing(tmp_path: Path) -> None:
    dataset = open_dataset(write_patch_set(tmp_path / "set", patch_rows(num_patients=2)))
    assert leaked_patients(f"file://{tmp_path}/nowhere", dataset) == ()
