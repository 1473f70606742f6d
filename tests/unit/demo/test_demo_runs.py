"""Which run a call of the demo is, and options that would be ignored."""

from pathlib import Path

import pytest

from eosin.demo.run import _run_name, demo_status, run_demo, users_material
from eosin.errors import UserError


def name_with(folder: Path, csv: str, overrides: str = "") -> str:
    slides = folder / "slides"
    slides.mkdir(exist_ok=True)
    (slides / "a.svs").write_bytes(b"slide")
    if csv:
        (folder / "mpp.csv").write_text(csv)
    material = users_material(
        str(folder / "out"), str(slides), overrides or (csv and str(folder / "mpp.csv"))
    )
    return _run_name(material, ())


def test_a_csv_and_a_corrected_one_are_runs_of_their_own(tmp_path: Path) -> None:
    names = [name_with(tmp_path, csv) for csv in ("", "slide,mpp\na.svs,50\n", "slide,mpp\na.svs,0.5\n")]
    assert len(set(names)) == 3
    assert name_with(tmp_path, "slide,mpp\na.svs,0.5\n") == names[2]


def test_a_csv_at_a_uri_is_told_by_what_it_says(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/mpp.csv"
    names = [name_with(tmp_path, f"slide,mpp\na.svs,{mpp}\n", uri) for mpp in (50, 0.5)]
    assert names[0] != names[1]
    with pytest.raises(UserError, match="there is no CSV at"):
        name_with(tmp_path, "", f"file://{tmp_path}/none.csv")


def test_options_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no slides are named") as caught:
        run_demo(tmp_path / "demo", overrides="mpp.csv")
    assert "SLIDES=" in caught.value.hint
    assert not (tmp_path / "demo").exists()


def test_where_no_demo_was_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no demo in"):
        demo_status(tmp_path)
