"""Tables as people save them: encodings, marks between columns, names, labels, nested Parquet."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset, MissingImage
from eosin.evaluation.datasets.open_dataset import open_dataset
from eosin.evaluation.datasets.slide_dataset import open_slides
from tests.support.evaluation import COLORS, encoded, image

BASE = "path,label\nimg/0.png,a\nimg/1.png,b\n"


def _table(root: Path, data: str | bytes) -> Dataset:
    (root / "img").mkdir(exist_ok=True)
    for i in range(2):
        (root / "img" / f"{i}.png").write_bytes(encoded(image(COLORS["red"], i)))
    (root / "t.csv").write_bytes(data if isinstance(data, bytes) else data.encode())
    return open_dataset(f"file://{root}/t.csv")


@pytest.mark.parametrize(
    "data",
    [
        BASE.encode("utf-16"), BASE.encode("utf-16-be"), BASE.encode("utf-16-le"),
        b"\xef\xbb\xbf" + BASE.encode(), BASE.replace(",", ";"), BASE.replace(",", "\t"),
        "sep=;\r\n" + BASE.replace(",", ";").replace("\n", "\r\n"),
        BASE.replace("\n", "\r"), BASE + ",,\n\n ,\n", '"path","label"\n"img/0.png","a"\n"img/1.png","b"\n',
        "path,label,note\n\nimg/0.png,a,one\u2028two\x0bthree\nimg/1.png,b,\n",
        ",PATH, Label\n0,img/0.png , a\n1,img/1.png,b\n", "path,label,\nimg/0.png,a,\nimg/1.png,b,\n",
    ],
)  # fmt: skip
def test_whoever_saved_it_the_table_says_the_same(tmp_path: Path, data: str | bytes) -> None:
    dataset = _table(tmp_path, data)
    assert [(s.source, s.label) for s in dataset.samples] == [("img/0.png", "a"), ("img/1.png", "b")]
    assert not any(isinstance(each, MissingImage) for each in dataset.read((0, 1))) and not dataset.notes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("path,label\nimg/0.png,Gef\xe4ss\n".encode("latin-1"), "not a CSV in UTF-8"),
        ("path,label\nimg/0.png,a,b\n", "row 2: more cells than the 2 columns"),
        ("path,label,label\nimg/0.png,a,b\n", r"several columns of one meaning: label, label \(label\)"),
        ("path,label,Label\nimg/0.png,a,b\n", r"several columns of one meaning: label, Label \(label\)"),
        ("path,label,Patient ID,case_id\nimg/0.png,a,p,q\n", r"Patient ID, case_id \(patient\)"),
        ("path;label;Center;centre\nimg/0.png;a;p;q\n", r"Center, centre \(centre\)"),
        ("path,label,fold_0\nimg/0.png,a,1\n", "row 1: split '1' is not one of"),
        ('path,label,note\nimg/0.png,a,"x\nimg/1.png,b,y\n', "unexpected end of data"),
        ("path,label,fold_0,Fold 0\nimg/0.png,a,train,test\n", r"fold_0, Fold 0 \(fold_0\)"),
        (b"PK\x03\x04rest of a workbook", "is an Excel, ZIP or gzip file"),
        ("<!doctype html><html></html>", r"lacks the columns path, label"),
    ],
)
def test_what_cannot_be_read_for_sure_is_refused(tmp_path: Path, data: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _table(tmp_path, data)


@pytest.mark.parametrize(
    ("cells", "labels", "note"),
    [
        (["1.0", "0.0", ""], ["1", "0", ""], ""),
        (["1.5", "1.0"], ["1.5", "1.0"], ""),
        (["01", "02"], ["01", "02"], ""),
        (["01", "1", "x"], ["01", "1", "x"], "differ in how a number is written alone: 01, 1"),
        (["nan", "NaN", "<NA>", "x"], ["", "", "", "x"], ""),
        (["Tumor", "tumor "], ["Tumor", "tumor"], "differ by case, blanks"),
        (["Gefa\u0308ss", "Gef\u00e4ss"], ["Gefa\u0308ss", "Gef\u00e4ss"], "coding of accents"),
        (
            ["None", "x"],
            ["None", "x"],
            "taken for a class, not for a missing label; leave such cells empty: None",
        ),
    ],
)
def test_labels_mean_what_they_meant(tmp_path: Path, cells: list[str], labels: list[str], note: str) -> None:
    rows = "".join(f"{i}.svs,{cell}\n" for i, cell in enumerate(cells))
    (tmp_path / "s.csv").write_text("slide,label\n" + rows)
    slides = open_slides(f"file://{tmp_path}/s.csv")
    images = _table(tmp_path, "path,label\n" + rows)
    for found in (slides, images):
        assert [sample.label for sample in found.samples] == labels
        assert (note in "; ".join(found.notes)) if note else not found.notes


def test_columns_are_known_by_their_usual_names_in_any_case(tmp_path: Path) -> None:
    data = "Path,LABEL,Patient ID,Center,Split,Fold 10,FOLD_2\nimg/0.png,a,p1,north,Validation,test,TRAIN\n"
    (sample,) = _table(tmp_path, data).samples
    assert (sample.patient, sample.centre, sample.split) == ("p1", "north", "val")
    assert sample.folds == ("train", "test")


def test_a_path_that_nobody_can_read_says_so(tmp_path: Path) -> None:
    dataset = _table(tmp_path, "path,label\nhttp://example.com/a.png,a\n")
    (missing,) = dataset.read([0])
    assert isinstance(missing, MissingImage) and "neither a path from here nor s3://" in missing.reason


def _parquet(root: Path, columns: dict[str, Any]) -> Dataset:
    pq.write_table(pa.table(columns), root / "t.parquet")
    return open_dataset(f"file://{root}/t.parquet")


def test_parquet_of_other_shapes(tmp_path: Path) -> None:
    data = encoded(image(COLORS["red"], 0))
    held = [{"bytes": data, "path": "a.png"}, {"bytes": data, "path": "b.png"}]
    boxes = [{"x": [1]}, {"x": [2]}]
    found = _parquet(tmp_path, {"image": held, "Label": [1.0, float("nan")], "objects": boxes})
    assert [s.label for s in found.samples] == ["1", ""] and found.read([1]) == [data]
    with pytest.raises(UserError, match=r"of one meaning: label, LABEL \(label\)"):
        _parquet(tmp_path, {"image": held, "label": ["a", "b"], "LABEL": ["b", "a"]})
    with pytest.raises(UserError, match="column label holds list"):
        _parquet(tmp_path, {"image": held, "label": [["a"], ["b"]]})
    (tmp_path / "a.png").write_bytes(data)
    assert _parquet(tmp_path, {"image": ["a.png"], "label": ["x"]}).read([0]) == [data]
    for named in (pa.array(["a.png"]).dictionary_encode(), pa.array(["a.png"], pa.large_string())):
        found = _parquet(tmp_path, {"image": named, "label": [b"x"]})
        assert found.read([0]) == [data] and found.samples[0].label == "x"
    (tmp_path / "parts" / "data").mkdir(parents=True)
    for part in range(2):
        pq.write_table(
            pa.table({"image": held, "label": [part, part]}), tmp_path / "parts" / "data" / f"{part}.parquet"
        )
    whole = open_dataset(f"file://{tmp_path}/parts")
    assert [s.label for s in whole.samples] == ["0", "0", "1", "1"] and whole.read([3]) == [data]


def test_an_image_that_a_row_only_names_is_read_from_its_path(tmp_path: Path) -> None:
    data, other = encoded(image(COLORS["red"], 0)), encoded(image(COLORS["blue"], 1))
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "b.png").write_bytes(other)
    held = [
        {"bytes": data, "path": "a.png"}, {"bytes": None, "path": "img/b.png"},
        {"bytes": None, "path": f"{tmp_path}/img/b.png"}, {"bytes": None, "path": "gone/c.png"},
        {"bytes": None, "path": None}, None,
    ]  # fmt: skip
    found = _parquet(tmp_path, {"image": held, "label": list("abcdef")})
    images = found.read([2, 0, 1])
    assert images == [other, data, other]
    gone, nothing, absent = found.read([3, 4, 5])
    assert isinstance(gone, MissingImage) and f"no file file://{tmp_path}/gone/c.png" in gone.reason
    assert nothing == absent == MissingImage("neither an image nor a path in the row")
    assert [s.source for s in found.samples[:4]] == [
        "row 1",
        "img/b.png",
        f"{tmp_path}/img/b.png",
        "gone/c.png",
    ]
    (tmp_path / "img" / "b.png").write_bytes(data)
    assert _parquet(tmp_path, {"image": held, "label": list("abcdef")}).digest != found.digest
    plain = _parquet(tmp_path, {"image": [data, None], "path": ["x", "img/b.png"], "label": ["a", "b"]})
    assert plain.read([0, 1]) == [data, data]


def test_times_that_python_has_none_of_and_truths_in_parquet(tmp_path: Path) -> None:
    data = encoded(image(COLORS["red"], 0))
    columns = {
        "image": [{"bytes": data, "path": ""}] * 2,
        "label": [True, False],
        "patient": pa.array([8035, 8036], pa.date32()),
        "scanned": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns", tz="UTC")),
        "forgotten": pa.array([253_402_300_800_000_000, 0], pa.timestamp("us")),
        "exposed": pa.array([5, 6], pa.duration("ns")),
    }
    found = _parquet(tmp_path, columns)
    told = [(sample.label, sample.patient) for sample in found.samples]
    assert told == [("True", "1992-01-01"), ("False", "1992-01-02")] and found.classes == ("False", "True")
