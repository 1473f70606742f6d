"""Folders, tables and patch sets of labelled images, good and bad."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eosin.errors import PermanentError, UserError
from eosin.evaluation.datasets.dataset import MissingImage
from eosin.evaluation.datasets.open_dataset import open_dataset
from tests.support.evaluation import COLORS, encoded, image, patch_rows, write_folder, write_patch_set
from tests.support.samples import sample

PNG = encoded(image(COLORS["red"], 1))


def test_class_folders_without_splits(tmp_path: Path) -> None:
    uri = write_folder(tmp_path / "set", {"": {"red": 2, "blue": 1}})
    dataset = open_dataset(uri)
    assert [(s.source, s.label, s.split) for s in dataset.samples] == [
        ("blue/000.png", "blue", ""),
        ("red/000.png", "red", ""),
        ("red/001.png", "red", ""),
    ]
    assert dataset.classes == ("blue", "red")
    assert dataset.read([1, 0]) == [
        (tmp_path / "set/red/000.png").read_bytes(),
        (tmp_path / "set/blue/000.png").read_bytes(),
    ]


def test_split_folders_by_any_usual_name(tmp_path: Path) -> None:
    uri = write_folder(tmp_path / "set", {"Train": {"red": 1}, "valid": {"red": 1}, "testing": {"blue": 1}})
    (tmp_path / "set" / "extra" / "red").mkdir(parents=True)
    (tmp_path / "set" / "extra" / "red" / "0.png").write_bytes(PNG)
    dataset = open_dataset(uri)
    assert [(s.split, s.label) for s in dataset.samples] == [
        ("train", "red"),
        ("test", "blue"),
        ("val", "red"),
    ]
    assert dataset.notes == ("left out: 1 file outside a class folder",)


def test_a_class_called_test_is_no_split(tmp_path: Path) -> None:
    """`test/` with images directly inside is a class, not a split without classes."""
    for name in ("test", "control"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(PNG)
    assert open_dataset(str(tmp_path)).classes == ("control", "test")


def test_what_lies_beside_images_is_passed_over(tmp_path: Path) -> None:
    uri = write_folder(tmp_path / "set", {"": {"red": 1}})
    for name in ("README.md", "red/Thumbs.db", "red/.DS_Store", "__MACOSX/red/0.png", "loose.png"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    dataset = open_dataset(uri)
    assert [s.source for s in dataset.samples] == ["red/000.png"]
    assert dataset.notes == ("left out: 1 file outside a class folder",)


def test_names_with_spaces_and_unicode(tmp_path: Path) -> None:
    folder = tmp_path / "mein Datensatz" / "Plattenepithel – gut & <böse>"
    folder.mkdir(parents=True)
    (folder / "bild 1.png").write_bytes(PNG)
    dataset = open_dataset(str(tmp_path / "mein Datensatz"))
    assert dataset.samples[0].label == "Plattenepithel – gut & <böse>"
    assert dataset.read([0]) == [PNG]


def test_a_changed_image_changes_the_digest(tmp_path: Path) -> None:
    uri = write_folder(tmp_path / "set", {"": {"red": 2, "blue": 2}})
    before = open_dataset(uri).digest
    assert open_dataset(uri).digest == before
    (tmp_path / "set/red/000.png").write_bytes(PNG + b"x")
    assert open_dataset(uri).digest != before


def test_a_file_that_vanishes_is_missing_and_the_others_are_read(tmp_path: Path) -> None:
    dataset = open_dataset(write_folder(tmp_path / "set", {"": {"red": 2}}))
    (tmp_path / "set/red/000.png").unlink()
    gone, there = dataset.read([0, 1])
    assert isinstance(gone, MissingImage)
    assert isinstance(there, bytes)


def test_an_empty_folder_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images at"):
        open_dataset(str(tmp_path))


def test_a_patch_set_by_its_folder_or_its_manifest(tmp_path: Path) -> None:
    rows = patch_rows(num_patients=2, per_class=2)
    uri = write_patch_set(tmp_path / "set", rows, num_shards=3)
    dataset = open_dataset(uri + "/manifest.json")
    assert dataset.digest == open_dataset(uri).digest
    assert len(dataset.samples) == 12
    expected = {f"{row.slide} @ {row.x_px},{row.y_px}": row for row in rows}
    for given, data in zip(dataset.samples, dataset.read(range(12)), strict=True):
        row = expected[given.source]
        assert (given.label, given.patient, given.mpp, data) == (row.label, row.patient, row.mpp, row.image)


@pytest.mark.parametrize("harm", ["missing", "truncated", "swapped"])
def test_a_damaged_patch_set_names_the_shard(tmp_path: Path, harm: str) -> None:
    uri = write_patch_set(tmp_path / "set", patch_rows(num_patients=2))
    shard, other = tmp_path / "set/00000-of-00002.parquet", tmp_path / "set/00001-of-00002.parquet"
    if harm == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-1] if harm == "truncated" else other.read_bytes())
    with pytest.raises(PermanentError, match="00000-of-00002"):
        open_dataset(uri)


def test_a_csv_of_paths_keeps_labels_as_written(tmp_path: Path) -> None:
    write_folder(tmp_path, {"": {"red": 2}})
    rows = (
        "path,label,split,patient,note",
        "red/000.png,001,train,p1,x",
        "red/001.png,NA,test,p2,",
        "red/9.png,001,,p3,",
    )
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    dataset = open_dataset(str(tmp_path / "labels.csv"))
    assert [(s.label, s.split, s.patient) for s in dataset.samples] == [
        ("001", "train", "p1"),
        ("NA", "test", "p2"),
        ("001", "", "p3"),
    ]
    images = dataset.read([2, 1])
    assert isinstance(images[0], MissingImage)
    assert images[1] == (tmp_path / "red/001.png").read_bytes()


def test_a_parquet_of_image_bytes(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([PNG, None], pa.binary()), "label": ["a", "b"]})
    pq.write_table(table, tmp_path / "set.parquet")
    dataset = open_dataset(str(tmp_path / "set.parquet"))
    assert [s.label for s in dataset.samples] == ["a", "b"]
    first, second = dataset.read([0, 1])
    assert first == PNG
    assert isinstance(second, MissingImage)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\na,b\n", "lacks the column path"),
        ("path,klass\na,b\n", "lacks the column label"),
        ("path,label,split\na,b,holdout\n", "row 1: split 'holdout'"),
        ("", "is not a table"),
        ("path,label\n", "no row below its header"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    ],
)
def test_a_table_that_is_not_one_says_why(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        open_dataset(str(tmp_path / "t.csv"))


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_paths_as_people_write_them(tmp_path: Path, mark: str) -> None:
    write_folder(tmp_path / "own", {"": {"red": 2}})
    write_folder(tmp_path / "other", {"": {"red": 1}})
    paths = [
        "./red/000.png", "red\\001.png", "../other/red/000.png", f"{tmp_path}/own/red/000.png",
        f"file://{tmp_path}/other/red/000.png", "../other/red/9.png", "s3:/nonsense", "http://host/a.png",
    ]  # fmt: skip
    rows = [mark.join(("label", "path")), *(mark.join(("red", path)) for path in paths)]
    (tmp_path / "own" / "labels.csv").write_text("\n".join(rows))
    dataset = open_dataset(str(tmp_path / "own" / "labels.csv"))
    own, other = tmp_path / "own" / "red", tmp_path / "other" / "red"
    expected = [own / "000.png", own / "001.png", other / "000.png", own / "000.png", other / "000.png"]
    images = dataset.read(range(len(paths)))
    assert images[:5] == [path.read_bytes() for path in expected]
    assert all(isinstance(image, MissingImage) for image in images[5:])
    assert dataset.read([4, 0]) == [images[4], images[0]]


def test_a_cell_without_a_value_is_no_class_and_whole_numbers_stay_whole(tmp_path: Path) -> None:
    table = pa.table(
        {"path": ["a", "b", "c"], "label": [1.0, float("nan"), 0.0], "split": ["train", None, "test"]}
    )
    pq.write_table(table, tmp_path / "set.parquet")
    dataset = open_dataset(str(tmp_path / "set.parquet"))
    assert [(s.label, s.split) for s in dataset.samples] == [("1", "train"), ("", ""), ("0", "test")]
    (tmp_path / "set.csv").write_text("path,label\na,nan\nb,NA\n")
    assert open_dataset(str(tmp_path / "set.csv")).classes == ("NA",)


def test_hugging_faces_images_are_read(tmp_path: Path) -> None:
    images = [{"bytes": PNG, "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "set.parquet")
    dataset = open_dataset(str(tmp_path / "set.parquet"))
    first, second = dataset.read([0, 1])
    assert first == PNG and isinstance(second, MissingImage)
    assert dataset.classes == ("0", "1")


def test_a_path_in_two_rows_is_noted(tmp_path: Path) -> None:
    rows = "path,label,split\na.png,x,train\n./a.png,y,test\nb.png,x,train\nb.png,x,train\nc.png,y,test\n"
    (tmp_path / "set.csv").write_text(rows)
    (note,) = open_dataset(str(tmp_path / "set.csv")).notes
    assert note == "images in several rows: 2, 1 with different labels or splits: a.png"


def test_a_pointer_of_git_lfs_is_no_image(tmp_path: Path) -> None:
    uri = write_folder(tmp_path / "set", {"": {"red": 2}})
    (tmp_path / "set/red/000.png").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"
    )
    first, second = open_dataset(uri).read([0, 1])
    assert isinstance(first, MissingImage) and "git lfs pull" in first.reason
    assert isinstance(second, bytes)


def test_a_missing_table_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no table at"):
        open_dataset(str(tmp_path / "none.csv"))


def test_a_parquet_of_garbage_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(io.BytesIO(b"PAR1garbagePAR1").getvalue())
    with pytest.raises(UserError, match="is not a table"):
        open_dataset(str(tmp_path / "t.parquet"))


def test_real_tissue_classes_as_they_are_published() -> None:
    dataset = open_dataset(str(sample("data", "patches", "crc-val-he")))
    assert dataset.classes == ("ADI", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
    assert len(dataset.samples) == 70
