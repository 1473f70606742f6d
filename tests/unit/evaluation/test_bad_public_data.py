"""Public datasets and slides with something wrong: one failed record each, and the other tasks go on."""

from dataclasses import replace
from pathlib import Path

import pytest

from eosin.config.presets import PRESETS
from eosin.evaluation.datasets.public.images import IMAGES
from eosin.evaluation.evaluate import evaluate
from tests.support import public_datasets as trees
from tests.support.evaluation import export, make_config, make_run, quiet_log, write_folder
from tests.support.labelled_slides import ABMIL, write_labelled_slides
from tests.support.segmentation import DECODER

PROBE = {"num_steps": 40, "num_runs": 4, "batch_size": 8}


def test_a_wrong_count_is_a_failed_record_and_harms_no_other_task(tmp_path: Path) -> None:
    trees.mhist(tmp_path / "mhist")
    own = write_folder(tmp_path / "own", {"": {"red": 10, "blue": 10}})
    tasks = [
        {"preset": "mhist", "dataset": f"file://{tmp_path}/mhist", "probe": PROBE},
        {"kind": "knn", "name": "own", "dataset": own},
    ]
    run = make_run(tmp_path, make_config(tasks))
    failed = evaluate(run, "random-init", "mhist", log=quiet_log())
    assert failed.status == "failed"
    assert "train has 7 images, 2175 expected; val has 3 images, 977 expected" in failed.reason
    assert evaluate(run, "random-init", "own", log=quiet_log()).status == "ok"


def test_a_part_is_judged_with_more_seeds_than_images_and_says_that_it_is_one(tmp_path: Path) -> None:
    trees.breakhis(tmp_path / "data")
    spoiled = next((tmp_path / "data").rglob("SOB_B_TA-14-777-40-001.png"))
    spoiled.write_bytes(spoiled.read_bytes()[:200])
    task = {
        "preset": "breakhis", "dataset": f"file://{tmp_path}/data", "allow_subset": True,
        "probe": {**PROBE, "num_runs": 20},
    }  # fmt: skip
    run = make_run(tmp_path, make_config([task]))
    record = evaluate(run, "random-init", "breakhis", log=quiet_log())
    assert record.status == "ok", record.reason
    assert len(record.metrics["balanced_accuracy"].values) == 20 > record.details.num_train == 7
    assert any("a part of BreakHis at 40× only" in note for note in record.details.notes)
    (dropped,) = record.details.dropped
    assert dropped.source.endswith("SOB_B_TA-14-777-40-001.png") and "damaged" in dropped.reason
    assert record.details.interval_over == "4 patients, too few for an interval (6 are needed)"


def test_a_preset_was_followed_only_on_every_image_and_at_evas_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As published, but for the time it takes.
    monkeypatch.setitem(PRESETS, "mhist", {"kind": "linear-probe", "layout": "mhist", "probe": PROBE})
    monkeypatch.setitem(IMAGES, "mhist", replace(IMAGES["mhist"], num_images={"train": 7, "val": 3}))
    trees.mhist(tmp_path / "mhist")
    task = {"preset": "mhist", "dataset": f"file://{tmp_path}/mhist"}

    def preset(**evaluate_: int) -> str:
        run = make_run(tmp_path, make_config([task], **evaluate_))
        record = evaluate(run, "random-init", "mhist", log=quiet_log())
        assert record.status == "ok", record.reason
        return record.details.preset

    assert (preset(), preset(img_px=224)) == ("", "mhist")
    (tmp_path / "mhist" / "images" / "MHIST_aaa.png").write_bytes(b"damaged")
    assert preset(img_px=224) == ""


def test_published_masks_are_judged_from_their_own_form(tmp_path: Path) -> None:
    trees.monusac(tmp_path / "data")
    (bad, *_) = sorted((tmp_path / "data").rglob("*.xml"))
    bad.write_text("<Annotations><Annotation>")
    task = {
        "preset": "monusac",
        "dataset": f"file://{tmp_path}/data",
        "allow_subset": True,
        "decoder": DECODER,
    }
    run = make_run(tmp_path, make_config([task]))
    record = evaluate(run, "random-init", "monusac", log=quiet_log())
    assert record.status == "ok", record.reason
    assert set(record.metrics) >= {"dice", "dice_epithelial"}
    (dropped,) = record.details.dropped
    assert "not an annotation file" in dropped.reason
    assert "patients, too few for an interval" in record.details.interval_over


def test_slides_of_a_diverged_checkpoint_are_a_failed_record(tmp_path: Path) -> None:
    dataset = write_labelled_slides(tmp_path / "slides", per_split=1)
    task = {"kind": "slide", "name": "kinds", "dataset": dataset, "patch_px": 64, "abmil": ABMIL}
    config = make_config([task])
    run = make_run(tmp_path, config)
    model = export(run, config, 5, spoil=float("nan"))
    failed = evaluate(run, model, "kinds", log=quiet_log())
    assert failed.status == "failed" and "not finite" in failed.reason
    fewer = evaluate(run, "random-init", "kinds", log=quiet_log())
    assert fewer.status == "ok", fewer.reason
    assert len(fewer.metrics["top1"].values) == ABMIL["num_runs"] > fewer.details.num_train == 2
