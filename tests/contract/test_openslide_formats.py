"""Formats that OpenSlide alone places: staged whole, indexed like any other, pixels as OpenSlide has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import pytest

from eosin.index.snapshot import open_snapshot
from eosin.slides.local import over_white
from eosin.slides.reader import open_slide_reader
from eosin.storage import open_store
from tests.support.indexing import config_for, index
from tests.support.openslide_files import write_ndpi, write_scn, write_trestle, write_vms
from tests.support.slide_files import tissue_picture

PIXELS = tissue_picture(704, 896, seed=5)
WRITERS: dict[str, tuple[str, Callable[[Path], Path], int]] = {
    "leica": ("a.scn", lambda folder: write_scn(folder / "a.scn", PIXELS), 1),
    "trestle": ("a.tif", lambda folder: write_trestle(folder / "a.tif", PIXELS), 1),
    "ndpi": ("a.ndpi", lambda folder: write_ndpi(folder / "a.ndpi", PIXELS), 1),
    "vms": ("case/s.vms", lambda folder: write_vms(folder / "case", "s", PIXELS), 4),
}


@pytest.mark.parametrize("name", WRITERS)
def test_it_is_indexed_and_read_as_openslide_does(tmp_path: Path, name: str) -> None:
    key, write, num_objects = WRITERS[name]
    slides = tmp_path / "slides"
    slides.mkdir()
    path = write(slides)
    index(config_for(slides, tmp_path / "index"))
    snapshot = open_snapshot(str(tmp_path / "index"))
    assert [row.slide for row in snapshot.rows] == [key]
    row = snapshot.rows[0]
    assert row.status == "ok" and row.header.access == "local" and len(row.header.objects) == num_objects
    assert (row.header.mpp_x, row.header.mpp_y) == pytest.approx((0.5, 0.5), rel=0.01)
    with (
        openslide.OpenSlide(path) as oracle,
        open_slide_reader(open_store(str(slides)), row.header, snapshot.load_all_tiles(row)) as reader,
    ):
        assert row.header.vendor == oracle.properties["openslide.vendor"]
        sizes = [(level.width_px, level.height_px) for level in row.header.levels]
        assert sizes == list(oracle.level_dimensions)
        for level, size in enumerate(sizes):
            wanted = over_white(np.asarray(oracle.read_region((0, 0), level, size)))
            np.testing.assert_array_equal(reader.read_region((0, 0), level, size), wanted)
        drawn = reader.read_region((0, 0), 0, (896, 704)).astype(int)
        assert np.abs(drawn - PIXELS).mean() < 12, "and OpenSlide shows what was drawn"
