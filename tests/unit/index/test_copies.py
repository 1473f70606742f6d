"""One slide under two names: told apart by what is on it, and never on both sides of a split."""

import shutil
from pathlib import Path

import pytest

from eosin.index.inspect import Inspection, inspect_index
from eosin.index.snapshot import open_snapshot
from eosin.index.split import copies, held_patients, linked_patients, patient_of
from tests.support.indexing import bare_row, config_for, index, make_slides
from tests.support.slide_files import picture, tissue_picture, write_aperio, write_tiff


@pytest.mark.parametrize("seed", range(30))
def test_copies_fall_on_one_side_whatever_they_are_called(seed: int) -> None:
    rows = [bare_row(f"{i}.svs", content=f"c{i % 10}") for i in range(20)]
    held = held_patients(linked_patients(rows), 0.4, seed)
    sides = {row.content: set[bool]() for row in rows}
    for each in rows:
        sides[each.content].add(patient_of(each) in held)
    assert all(len(side) == 1 for side in sides.values()) and held


def test_patients_that_share_a_slide_are_linked_through_others() -> None:
    rows = [
        bare_row("a", "P3", "x"),
        bare_row("b", "P1", "x"),
        bare_row("c", "P1", "y"),
        bare_row("d", "P2", "y"),
        bare_row("e", "P4"),
    ]
    expected = dict.fromkeys(("patient:P1", "patient:P2", "patient:P3"), "patient:P1")
    assert linked_patients(rows) == linked_patients(rows[::-1]) == {**expected, "patient:P4": "patient:P4"}
    assert not held_patients(linked_patients(rows[:4]), 0.5), "they are one patient's"


def test_a_copy_that_comes_later_moves_nobody_else() -> None:
    rows = [bare_row(f"{i}.svs", content=str(i)) for i in range(200)]
    before = held_patients(linked_patients(rows), 0.3)
    after = held_patients(linked_patients([*rows, bare_row("z-copy.svs", content="7")]), 0.3)
    assert after - {"slide:z-copy.svs"} == before
    assert ("slide:z-copy.svs" in after) == ("slide:7.svs" in after)


def test_slides_of_unknown_content_are_no_copies() -> None:
    rows = [bare_row(f"{i}.svs") for i in range(5)]
    assert len(set(linked_patients(rows).values())) == 5


def test_copies_are_found_though_name_metadata_and_container_differ(tmp_path: Path) -> None:
    slides = make_slides(tmp_path / "slides", 3)
    shutil.copy(slides / "slide-1.svs", slides / "other-name.svs")
    pixels = [tissue_picture(700, 800, seed=9)]
    write_aperio(slides / "named.svs", pixels, mpp=0.5, compression="jpeg")
    write_aperio(slides / "anonymous.svs", pixels, mpp=0.25, compression="jpeg", big=True)
    near = tissue_picture(700, 800, seed=9)
    near[350:380, 400:430] = picture(30, 30)
    write_aperio(slides / "near.svs", [near], mpp=0.5, compression="jpeg")
    write_tiff(slides / "staged-1.tif", pixels, compression="packbits", mpp=0.5)
    write_tiff(slides / "staged-2.tif", pixels, compression="packbits", mpp=0.5, software="other")
    index(config_for(slides, tmp_path / "index"))
    snapshot = open_snapshot(str(tmp_path / "index"))
    found = copies(snapshot.rows, snapshot.usable)
    assert found == [
        ("anonymous.svs", "named.svs"), ("other-name.svs", "slide-1.svs"), ("staged-1.tif", "staged-2.tif")
    ]  # fmt: skip
    inspection = inspect_index(str(tmp_path / "index"))
    assert isinstance(inspection, Inspection) and list(inspection.copies) == found
    assert "other-name.svs = slide-1.svs: the same slide; kept on one side" in str(inspection)
