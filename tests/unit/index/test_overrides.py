"""The overrides' CSV: what it may say, and what is said of what it may not."""

from pathlib import Path

import pytest

from eosin.errors import UserError
from eosin.index.listing import Unit
from eosin.index.overrides import Overrides, load_overrides
from eosin.storage import ObjectInfo


def loaded(tmp_path: Path, text: str | bytes) -> Overrides:
    path = tmp_path / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_overrides(str(path))


def units(*keys: str) -> list[Unit]:
    return [Unit(key, "slide", (ObjectInfo(key, 1, "e", 0.0),)) for key in keys]


@pytest.mark.parametrize(
    ("row", "column"), [("a.svs,abc", "mpp"), ("a.svs,-1", "mpp"), ("a.svs,0", "mpp"), ("a.svs,nan", "mpp"),
                        ("a.svs,inf", "mpp"), ("a.svs,\"0,25\"", "mpp")],
)  # fmt: skip
def test_a_malformed_mpp_is_named_with_its_line(tmp_path: Path, row: str, column: str) -> None:
    with pytest.raises(UserError, match=rf"table\.csv:3: {column} .* µm a pixel"):
        loaded(tmp_path, f"slide,mpp\nok.svs,0.25\n{row}\n")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no column `slide`"),
        ("name,mpp\na,1\n", "its columns|no column `slide`"),
        ("slide,mpp\na,1\na,2\n", ":3: a is named twice"),
        ("slide,mpp, mpp\na,1,2\n", ":1: column 'mpp' stands twice"),
        ("slide,mpp\n,1\n", ":2: no slide named"),
        ("slide,mpp\na,1,2\n", ":2: more cells"),
        ("slide,exclude\na,maybe\n", "exclude 'maybe'"),
        ("slide,mmp\na,1\n", ":1: column 'mmp' is not known; did you mean mpp?"),
        ("slide,MPP\na,1\n", "did you mean mpp?"),
        ("slide,patient_id\na,p\n", "did you mean patient?"),
        ("Slide,mpp\na,1\n", "did you mean slide?"),
        (b"slide\n\xff\xfe\n", "not UTF-8"),
        ("slide,mpp_x\na,0.3\n", ":2: one of mpp_x and mpp_y alone"),
        ("slide,label:x,label: x\na,1,2\n", ":1: column 'label:x' stands twice"),
        ("slide,label,labels\na,1,2\n", ":1: column 'label' stands twice"),
        ("slide,label:\na,1\n", ":1: column 'label:' names no label"),
    ],
)
def test_what_a_table_may_not_say(tmp_path: Path, text: str | bytes, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        loaded(tmp_path, text)


def test_a_table_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no overrides at"):
        load_overrides(str(tmp_path / "gone.csv"))
    assert load_overrides(None).matched(units("a")) == ({}, [])


def test_excels_byte_order_mark_and_spaces_are_no_trouble(tmp_path: Path) -> None:
    table = loaded(tmp_path, "\ufeffslide, mpp_x , mpp_y\r\na.svs, 0.25,0.26\r\n")
    line = table.lines["a.svs"]
    assert (line.mpp_x, line.mpp_y) == (0.25, 0.26)


@pytest.mark.parametrize(
    "text", ["slide;mpp;cohort\na.svs;0,25;A, B\n;;\n", "slide\tmpp\tcohort\na.svs\t0.25\tA, B\n"]
)
def test_what_spreadsheets_write_in_place_of_commas(tmp_path: Path, text: str) -> None:
    line = loaded(tmp_path, text).lines["a.svs"]
    assert (line.mpp_x, line.cohort) == (0.25, "A, B")


def test_labels_have_any_names_and_columns_of_ones_own_are_kept(tmp_path: Path) -> None:
    line = loaded(tmp_path, "slide,label:x,label:mpp,scanner,x\na.svs,pos,high,GT450,y\n").lines["a.svs"]
    assert (line.labels, line.extra) == ({"x": "pos", "mpp": "high"}, {"scanner": "GT450", "x": "y"})


def test_a_key_wins_over_a_file_name_and_an_ambiguous_name_is_none(tmp_path: Path) -> None:
    table = loaded(tmp_path, "slide,patient\na.svs,top\nx/b.svs,deep\nb.svs,name\nc.svs,both\nd,stem\n")
    found, unknown = table.matched(units("a.svs", "y/a.svs", "x/b.svs", "x/c.svs", "y/c.svs", "z/d.svs"))
    assert {key: line.patient for key, line in found.items()} == {
        "a.svs": "top", "x/b.svs": "deep", "z/d.svs": "stem",
    }  # fmt: skip
    assert unknown == ["c.svs"]


def test_a_dicom_folder_may_be_named(tmp_path: Path) -> None:
    files = tuple(ObjectInfo(f"case/{i}.dcm", 1, "e", 0.0) for i in range(3))
    for name in ("case", "case/"):
        table = loaded(tmp_path, f"slide,patient\n{name},P\n")
        found, unknown = table.matched([Unit("case", "unsorted", files)])
        assert found["case/0.dcm"].patient == "P" and not unknown
