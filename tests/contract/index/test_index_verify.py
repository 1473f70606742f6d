"""The guard against misread formats: what another reader shows otherwise is not used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import eosin.index.read_slide as read_slide_module
from eosin.errors import UserError
from eosin.index.inspect import inspect_index
from eosin.index.overview import Overview, read_overview
from tests.support.indexing import config_for, index, make_slides, rows_of
from tests.support.slide_files import EXPLICIT, tissue_picture, write_dicom, write_tiff


def test_one_slide_of_each_vendor_and_layout_is_checked(tmp_path: Path) -> None:
    slides = make_slides(tmp_path / "slides", 3)
    write_tiff(slides / "b.tif", [tissue_picture(700, 800)], compression="deflate")
    write_dicom(slides / "c.dcm", tissue_picture(700, 800), syntax=EXPLICIT)
    (slides / "photo.png").write_bytes(b"\x89PNG")
    manifest = index(config_for(slides, tmp_path / "index"))
    assert (manifest.num_verified, manifest.num_ok, manifest.num_not_slides) == (3, 5, 1)
    text = str(inspect_index(str(tmp_path / "index")))
    assert "checked    3 against another reader" in text and "others     1 objects" in text


def test_tiles_in_another_order_are_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that scrambles what it reads: the picture is not OpenSlide's, and the slide is not used."""

    def scrambled(*arguments: object) -> Overview:
        seen = read_overview(*arguments)  # type: ignore[arg-type]
        half = seen.pixels.shape[0] // 2
        rolled = np.roll(seen.pixels, half, axis=(0, 1))
        return Overview(rolled, seen.pixel_x_px, seen.pixel_y_px, seen.num_damaged)

    monkeypatch.setattr(read_slide_module, "read_overview", scrambled)
    slides = make_slides(tmp_path / "slides", 1)
    with pytest.raises(UserError, match="1 disagrees"):
        index(config_for(slides, tmp_path / "index"))
    row = rows_of(str(tmp_path / "index"))["slide-0.svs"]
    assert row.status == "disagrees" and "another reader" in row.detail
    assert "do not use it" in str(inspect_index(str(tmp_path / "index")))
