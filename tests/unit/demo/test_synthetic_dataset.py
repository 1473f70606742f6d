"""A synthetic data set: complete, true to its manifest, continued after a kill."""

import csv
import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from eosin.demo.synthetic import CLASS_NAMES, SyntheticConfig, slide_records, write_dataset
from eosin.errors import UserError
from eosin.patches.sets.patchset import read_manifest
from eosin.records.patchset_shard import PatchRow, decode_shard

TINY = SyntheticConfig(
    num_slides=3, slides_per_patient=2, width_px=640, height_px=480, labelled_patients=4,
    labelled_per_class=5, labelled_patch_px=48, seed=33,
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("data set é"), TINY)


def written(folder: Path, config: SyntheticConfig) -> Path:
    write_dataset(str(folder), config, num_workers=1)
    return folder


def rows_of(dataset: Path) -> list[PatchRow]:
    path = dataset / "labelled" / "00000-of-00001.parquet"
    return decode_shard(path.read_bytes(), source=str(path))


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_file_is_there_and_no_other(dataset: Path) -> None:
    slides = {f"slides/slide-00{i}.svs" for i in range(3)}
    rest = {"labelled/manifest.json", "labelled/00000-of-00001.parquet", "overrides.csv"}
    assert set(digests(dataset)) == slides | rest


def test_overrides_name_every_slide_with_patient_and_cohort(dataset: Path) -> None:
    with (dataset / "overrides.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["slide"] for row in rows] == sorted(p.name for p in (dataset / "slides").iterdir())
    assert [row["patient"] for row in rows] == ["patient-01", "patient-01", "patient-02"]
    assert {row["cohort"] for row in rows} == {"cohort-a", "cohort-b"}


def test_manifest_tells_the_truth_about_the_shard(dataset: Path) -> None:
    manifest = read_manifest(str(dataset / "labelled"))
    shard = dataset / "labelled" / manifest.shards[0].key
    assert hashlib.sha256(shard.read_bytes()).hexdigest() == manifest.shards[0].sha256
    assert manifest.num_patches == len(rows_of(dataset)) == 4 * 8 * 5
    assert set(manifest.slides) == {row.slide for row in rows_of(dataset)}


def test_labelled_patches_are_balanced_and_no_patient_lies_in_two_splits(dataset: Path) -> None:
    rows = rows_of(dataset)
    assert {name: sum(row.label == name for row in rows) for name in CLASS_NAMES} == dict.fromkeys(
        CLASS_NAMES, 20
    )
    splits_of = {row.patient: {r.split for r in rows if r.patient == row.patient} for row in rows}
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert set.union(*splits_of.values()) == {"train", "val", "test"}
    assert not set(splits_of) & {record.patient for record in slide_records(TINY)}
    assert len({row.label for row in rows[:40]}) == 8


def test_labelled_patches_are_png_of_the_stated_side(dataset: Path) -> None:
    for row in rows_of(dataset)[::17]:
        assert row.image.startswith(b"\x89PNG")
        assert cv2.imdecode(np.frombuffer(row.image, np.uint8), cv2.IMREAD_COLOR).shape == (48, 48, 3)
        assert row.mpp == 0.5 and row.foreground == 1.0
    assert {(row.x_px, row.y_px) for row in rows_of(dataset)} == {(0, 0), (96, 0), (0, 96), (96, 96)}


def test_no_two_labelled_patches_are_the_same(dataset: Path) -> None:
    rows = rows_of(dataset)
    assert len({row.image for row in rows}) == len(rows)


def test_processes_and_folders_change_no_byte(dataset: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_dataset(str(tmp_path), TINY, num_workers=2, progress=lambda done, total: seen.append((done, total)))
    assert digests(tmp_path) == digests(dataset)
    assert seen == [(i + 1, 7) for i in range(7)]


def test_again_writes_nothing_anew(dataset: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*") if path.name != "overrides.csv"}
    written(dataset, TINY)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_config_replaces_what_it_changes(tmp_path: Path) -> None:
    small = replace(TINY, num_slides=2, labelled_per_class=1)
    slides = digests(written(tmp_path, small) / "slides")
    written(tmp_path, replace(small, labelled_per_class=2))
    assert digests(tmp_path / "slides") == slides
    assert read_manifest(str(tmp_path / "labelled")).num_patches == 64
    written(tmp_path, replace(small, seed=34))
    assert not set(digests(tmp_path / "slides").values()) & set(slides.values())


def test_fewer_slides_leave_none_of_the_old_ones(tmp_path: Path) -> None:
    small = replace(TINY, labelled_patients=0)
    written(tmp_path, small)
    written(tmp_path, replace(small, num_slides=1))
    assert set(digests(tmp_path)) == {"slides/slide-000.svs", "overrides.csv"}


def test_a_folder_that_is_a_file_is_a_user_s_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match="taken"):
        written(tmp_path / "taken", TINY)


KILLED = """
import sys
from eosin.demo.synthetic import SyntheticConfig, write_dataset
if __name__ == "__main__":
    config = SyntheticConfig(num_slides=3, slides_per_patient=2, width_px=640, height_px=480,
                             labelled_patients=4, labelled_per_class=5, labelled_patch_px=48, seed=33)
    write_dataset(sys.argv[1], config, num_workers=2, progress=lambda done, total: print(done, flush=True))
"""


def test_killed_and_run_again_it_ends_with_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    folder = tmp_path / "data"
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == b"1\n"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert_no_worker_outlives(process.pid)
    assert len(list((folder / "slides").glob("*.svs"))) > 0 and not (folder / "overrides.csv").exists()
    written(folder, TINY)
    kept = {name: digest for name, digest in digests(folder).items() if ".eosin-tmp-" not in name}
    assert kept == digests(dataset)


def assert_no_worker_outlives(session: int) -> None:
    """The killed process led a session of its own: nothing of it may be left after a few seconds."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(session, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(session, signal.SIGKILL)
    pytest.fail("workers outlived the process that started them")
