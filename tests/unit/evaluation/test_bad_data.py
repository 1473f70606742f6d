"""Labelled data as people really have it: damaged, incomplete, one-sided."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eosin.evaluation.evaluate import evaluate
from eosin.layout import RunLayout
from eosin.records import MetricRecord
from eosin.storage import open_store
from tests.support.evaluation import (
    make_config,
    make_run,
    patch_rows,
    quiet_log,
    write_folder,
    write_patch_set,
)

PROBE = {"num_steps": 60, "batch_size": 16, "lr": 1e-2}


def _probe(tmp_path: Path, dataset: str, **probe: Any) -> MetricRecord:
    task = {"kind": "linear-probe", "name": "probe", "dataset": dataset, "probe": {**PROBE, **probe}}
    return evaluate(make_run(tmp_path, make_config([task])), "random-init", "probe", log=quiet_log())


def test_damaged_images_are_dropped_counted_and_named(tmp_path: Path) -> None:
    uri = write_folder(tmp_path / "set", {"train": {"red": 8, "blue": 8}, "test": {"red": 4, "blue": 4}})
    (tmp_path / "set/train/red/000.png").write_bytes(b"")
    whole = (tmp_path / "set/test/blue/001.png").read_bytes()
    (tmp_path / "set/test/blue/001.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "set/test/blue/page.png").write_bytes(b"<html>403 Forbidden</html>")
    record = _probe(tmp_path, uri)
    assert record.status == "ok"
    assert record.num_patches == 22
    assert record.details.num_dropped == 3
    reasons = {drop.source: drop.reason for drop in record.details.dropped}
    assert reasons["train/red/000.png"] == "the file is empty"
    assert reasons["test/blue/001.png"].startswith("damaged")
    assert reasons["test/blue/page.png"].startswith("not a PNG, JPEG or TIFF")
    assert record.details.num_judged == 7


def test_missing_files_of_a_table_are_dropped_and_named(tmp_path: Path) -> None:
    write_folder(tmp_path, {"": {"red": 10, "blue": 10}})
    rows = [f"{name}/{i:03d}.png,{name}" for name in ("red", "blue") for i in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    record = _probe(tmp_path, f"file://{tmp_path}/labels.csv")
    assert (record.status, record.num_patches, record.details.num_dropped) == ("ok", 20, 4)
    assert [drop.reason for drop in record.details.dropped] == [
        f"there is no file file://{tmp_path}/{drop.source}" for drop in record.details.dropped
    ]


def test_a_failed_task_keeps_the_reasons_why_images_were_left_out(tmp_path: Path) -> None:
    uri = write_folder(tmp_path / "set", {"train": {"red": 6, "blue": 6}, "test": {"red": 2, "blue": 2}})
    for path in (tmp_path / "set/test/blue").iterdir():
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    record = _probe(tmp_path, uri)
    assert record.status == "failed" and "1 class" in record.reason
    assert record.details.num_dropped == 2
    assert all("git lfs pull" in drop.reason for drop in record.details.dropped)
    for path in (tmp_path / "set").rglob("*.png"):
        path.write_bytes(b"")
    record = _probe(tmp_path, uri)
    assert record.status == "failed"
    assert (record.details.num_dropped, record.details.dropped[0].reason) == (16, "the file is empty")


def test_the_same_bytes_on_two_sides_and_under_two_labels_are_seen(tmp_path: Path) -> None:
    uri = write_folder(tmp_path / "set", {"train": {"red": 8, "blue": 8}, "test": {"red": 6, "blue": 2}})
    same = (tmp_path / "set/train/red/000.png").read_bytes()
    (tmp_path / "set/test/red/copy.png").write_bytes(same)
    (tmp_path / "set/train/blue/copy.png").write_bytes(same)
    for _ in range(2):  # computed, then from the store
        notes = _probe(tmp_path, uri).details.notes
        assert "1 judged image, byte for byte, among those learnt from: figures flatter" in notes
        assert "1 image, byte for byte the same, with two labels" in notes
        assert "judged on fewer than 5 samples, so balanced accuracy jumps: blue on 2" in notes
        uri += "/"


def test_one_damaged_image_moves_no_other_to_another_split(tmp_path: Path) -> None:
    uri = write_folder(tmp_path / "set", {"": {"red": 30, "blue": 30}})
    before = _probe(tmp_path, uri)
    (tmp_path / "set/red/003.png").write_bytes(b"x")
    after = _probe(tmp_path, uri)
    counts = [(r.details.num_train, r.details.num_val, r.details.num_judged) for r in (before, after)]
    assert sum(abs(a - b) for a, b in zip(*counts, strict=True)) == 1


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ({"": {"red": 9}}, "has one class only, red"),
        (
            {"train": {"red": 5, "blue": 5}, "test": {"red": 3}},
            "the test split has 3 readable images of 1 class",
        ),
        ({"train": {"red": 5}, "test": {"red": 2, "blue": 2}}, "the training split has"),
        ({"": {"red": 1, "blue": 1}}, "two are needed"),
    ],
)
def test_nothing_to_tell_apart_is_a_failed_record(
    tmp_path: Path, layout: dict[str, dict[str, int]], words: str
) -> None:
    record = _probe(tmp_path, write_folder(tmp_path / "set", layout))
    assert record.status == "failed"
    assert words in record.reason


def test_a_set_without_labels_is_a_failed_record(tmp_path: Path) -> None:
    record = _probe(tmp_path, write_patch_set(tmp_path / "set", patch_rows(label="")))
    assert record.status == "failed"
    assert "has a label" in record.reason


def test_nothing_readable_is_a_failed_record_naming_the_first(tmp_path: Path) -> None:
    uri = write_folder(tmp_path / "set", {"": {"red": 2, "blue": 2}})
    for path in (tmp_path / "set").rglob("*.png"):
        path.write_bytes(b"GIF89a")
    record = _probe(tmp_path, uri)
    assert record.status == "failed"
    assert "none of the 4 images" in record.reason
    assert "blue/000.png" in record.reason


def test_classes_that_one_split_lacks_are_noted(tmp_path: Path) -> None:
    layout = {"train": {"red": 5, "blue": 5}, "test": {"red": 3, "blue": 3, "green": 3}}
    record = _probe(tmp_path, write_folder(tmp_path / "set", layout), num_steps=500)
    assert record.status == "ok"
    assert "no image of green in training" in record.details.notes
    assert record.details.recall["green"] < 0.5


def test_labels_that_no_two_splits_share_are_a_failed_record(tmp_path: Path) -> None:
    uri = write_folder(tmp_path / "set", {"train": {"red": 5, "blue": 5}, "test": {"red": 3, "blue": 3}})
    for name, other in (("red", "Red"), ("blue", "Blue")):
        (tmp_path / "set/test" / name).rename(tmp_path / "set/test" / other)
    record = _probe(tmp_path, uri)
    assert record.status == "failed"
    assert "training has blue, red, the judged split Blue, Red" in record.reason
    assert "\n" not in record.reason


def test_fewer_images_than_seeds_or_shots(tmp_path: Path) -> None:
    uri = write_folder(tmp_path / "set", {"train": {"red": 2, "blue": 1}, "test": {"red": 1, "blue": 1}})
    few = _probe(tmp_path, uri, num_runs=20)
    assert few.status == "ok"
    assert len(few.metrics["balanced_accuracy"].values) == 20
    assert "no validation images: the last epoch is judged, not the best" in few.details.notes
    shots = _probe(tmp_path / "b", uri, num_shots=5)
    assert shots.status == "failed"
    assert "5 shots are wanted" in shots.reason


def test_more_neighbours_than_images_is_noted(tmp_path: Path) -> None:
    uri = write_folder(tmp_path / "set", {"train": {"red": 3, "blue": 3}, "test": {"red": 2, "blue": 2}})
    config = make_config([{"kind": "knn", "name": "knn", "dataset": uri, "k": 20}])
    record = evaluate(make_run(tmp_path, config), "random-init", "knn", log=quiet_log())
    assert record.details.k == 6
    assert "k is 6, not 20: the training split has no more images" in record.details.notes


def test_two_at_once_give_one_embedding_file_and_the_same_record(tmp_path: Path) -> None:
    uri = write_folder(tmp_path / "set", {"": {"red": 20, "blue": 20}})
    run = make_run(tmp_path, make_config([{"kind": "knn", "name": "knn", "dataset": uri}]))
    with ThreadPoolExecutor(4) as pool:
        records = list(pool.map(lambda _: evaluate(run, "random-init", "knn", log=quiet_log()), range(4)))
    assert {record.status for record in records} == {"ok"}
    assert all(record.metrics == records[0].metrics for record in records)
    store = open_store(run)
    assert len(list(store.list(RunLayout.EMBEDDINGS))) == 1
    assert len(list(store.list(RunLayout.METRICS))) == 1


def test_another_seed_is_another_evaluation(tmp_path: Path) -> None:
    uri = write_folder(tmp_path / "set", {"": {"red": 10, "blue": 10}})
    task = {"kind": "linear-probe", "name": "probe", "dataset": uri, "probe": PROBE}
    config = make_config([task])
    digests = set()
    for seed in (0, 1):
        run = make_run(tmp_path / str(seed), config.model_copy(update={"seed": seed}))
        record = evaluate(run, "random-init", "probe", log=quiet_log())
        digests.add(record.inputs_digest)
        assert np.isfinite(record.metrics["balanced_accuracy"].mean)
    assert len(digests) == 2


def test_shots_of_a_class_that_nothing_is_learnt_of_name_it(tmp_path: Path) -> None:
    layout = {"train": {"red": 5, "blue": 5}, "test": {"red": 3, "blue": 3, "green": 3}}
    uri = write_folder(tmp_path / "set", layout)
    config = make_config([{"kind": "few-shot", "name": "few", "dataset": uri}])
    record = evaluate(make_run(tmp_path, config), "random-init", "few", log=quiet_log())
    assert "green has 0 training images, 1 shots are wanted → give images of it" in record.reason


def test_retrieval_among_one_readable_class_finds_nothing_out(tmp_path: Path) -> None:
    uri = write_folder(tmp_path / "set", {"": {"red": 8, "blue": 2}})
    for name in ("000", "001"):
        (tmp_path / f"set/blue/{name}.png").write_bytes(b"")
    config = make_config([{"kind": "retrieval", "name": "find", "dataset": uri}])
    record = evaluate(make_run(tmp_path, config), "random-init", "find", log=quiet_log())
    assert record.status == "failed" and "readable images are of one class" in record.reason
    assert len(record.details.dropped) == 2
