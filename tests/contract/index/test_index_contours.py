"""Tissue contours as GeoJSON: drawn again by another library, they are the mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from eosin.errors import UserError
from eosin.index.contours import contours_of, write_contours
from eosin.index.rows import SlideRow
from eosin.index.tissue_mask import TissueMask
from eosin.slides.model import SlideHeader
from tests.support.indexing import config_for, index, make_slides, rows_of


def drawn(collection: dict[str, Any], mask: TissueMask) -> np.ndarray:
    """The polygons filled by Pillow, at the mask's size."""
    picture = Image.new("1", (mask.width * 4, mask.height * 4))
    draw = ImageDraw.Draw(picture)
    for feature in collection["features"]:
        for number, ring in enumerate(feature["geometry"]["coordinates"]):
            assert ring[0] == ring[-1] and len(ring) >= 4
            points = [(4 * x / mask.pixel_x_px - 0.5, 4 * y / mask.pixel_y_px - 0.5) for x, y in ring]
            draw.polygon(points, fill=number == 0)
    return np.asarray(picture)[2::4, 2::4]


def test_the_polygons_are_the_mask(tmp_path: Path) -> None:
    slides = make_slides(tmp_path / "slides", 2)
    index(config_for(slides, tmp_path / "index"))
    result = write_contours(str(tmp_path / "index"), str(tmp_path / "out"))
    assert result.num_slides == 2 and result.num_contours >= 2
    for name, row in rows_of(str(tmp_path / "index")).items():
        collection = json.loads((tmp_path / "out" / f"{name}.geojson").read_text())
        assert {feature["properties"]["objectType"] for feature in collection["features"]} == {"annotation"}
        assert row.tissue is not None
        assert (drawn(collection, row.tissue) == row.tissue.array).mean() > 0.99


def test_holes_are_holes() -> None:
    array = np.zeros((40, 60), bool)
    array[5:35, 5:50] = True
    array[12:20, 20:30] = False
    array[38, 55] = True
    mask = TissueMask.from_array(array, 16.0, 8.0)
    row = SlideRow("a.svs", "ok", "", SlideHeader((), "", "", (), 0.5, 0.5), tissue=mask)
    collection = contours_of(row)
    assert [len(each["geometry"]["coordinates"]) for each in collection["features"]].count(2) == 1
    found = drawn(collection, mask)
    assert (found == array).mean() > 0.99 and not found[13:19, 21:29].any() and found[38, 55]


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    index(config_for(make_slides(tmp_path / "slides", 1), tmp_path / "index"))
    with pytest.raises(UserError, match="no slide"):
        write_contours(str(tmp_path / "index"), str(tmp_path / "out"), ["nothing*"])
