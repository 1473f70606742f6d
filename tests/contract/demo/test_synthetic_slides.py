"""Synthetic slides are what OpenSlide and tifffile take for slides of a scanner."""

from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile

from eosin.demo.synthetic import SyntheticConfig
from eosin.demo.synthetic.scene import draw_slide, plan_slide
from tests.support.patches import write_slide

SEED = 90210
# Not multiples of the tile side, so that the last column and row are padded.
CONFIG = SyntheticConfig(width_px=1100, height_px=710)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "a.svs", seed=SEED, config=CONFIG)


def read_level(path: Path, level: int) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        image = slide.read_region((0, 0), level, slide.level_dimensions[level])
    return np.asarray(image)[..., :3]


def psnr_db(left: np.ndarray, right: np.ndarray) -> float:
    error = float(np.mean((left.astype(float) - right) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def test_openslide_sees_an_aperio_slide_with_the_drawn_pixels(slide: Path) -> None:
    with openslide.OpenSlide(slide) as opened:
        assert opened.properties["openslide.vendor"] == "aperio"
        assert float(opened.properties["openslide.mpp-x"]) == 0.25
        assert float(opened.properties["openslide.objective-power"]) == 40
        assert opened.level_dimensions == ((1100, 710), (275, 177), (68, 44))
        assert set(opened.associated_images) == {"thumbnail", "label", "macro"}
    assert psnr_db(read_level(slide, 0), draw_slide(SEED, CONFIG)) > 30


def test_pages_come_in_aperio_order(slide: Path) -> None:
    with tifffile.TiffFile(slide) as tiff:
        assert tiff.is_svs
        pages = list(tiff.pages)
        assert [page.is_tiled for page in pages] == [True, False, True, True, False, False]
        assert [int(page.subfiletype) for page in pages[-2:]] == [1, 9]
        words = [page.description for page in pages]
    assert all(text.startswith("Aperio Image Library") for text in words)
    assert "|AppMag = 40|MPP = 0.2500|" in words[0]
    assert words[2].splitlines()[1].startswith("1100x710 (240x240) JPEG/YCC Q=80 -> 275x177 ")
    assert words[4].splitlines()[1] == "label 320x320" and words[5].splitlines()[1] == "macro 960x320"


def test_jpeg_tiles_share_their_tables(slide: Path) -> None:
    with tifffile.TiffFile(slide) as tiff:
        page = tiff.pages[0]
        tiff.filehandle.seek(page.dataoffsets[0])
        tile = tiff.filehandle.read(page.databytecounts[0])
        assert page.jpegtables is not None and int(page.photometric) == 6
    with pytest.raises(ValueError):
        simplejpeg.decode_jpeg(tile)
    whole = page.jpegtables[:-2] + tile[2:]
    assert simplejpeg.decode_jpeg(whole).shape == (240, 240, 3)


def test_levels_are_area_averages_of_the_finest(slide: Path) -> None:
    drawn = draw_slide(SEED, CONFIG)
    for level, side in ((1, 4), (2, 16)):
        mean = cv2.resize(drawn, (1100 // side, 710 // side), interpolation=cv2.INTER_AREA)
        assert psnr_db(read_level(slide, level), mean) > 30


def test_tifffile_and_openslide_agree(slide: Path) -> None:
    with tifffile.TiffFile(slide) as tiff:
        assert np.array_equal(tiff.pages[0].asarray(), read_level(slide, 0))


def test_tissue_lies_where_the_plan_says() -> None:
    config = SyntheticConfig(width_px=1400, height_px=1400)
    drawn = draw_slide(SEED, config)
    inside = np.zeros(drawn.shape[:2], np.uint8)
    for island in plan_slide(SEED, config):
        cv2.fillPoly(inside, [np.rint(island.polygon_px).astype(np.int32)], 1)
    kernel = np.ones((25, 25), np.uint8)
    well_inside, well_outside = cv2.erode(inside, kernel) > 0, cv2.dilate(inside, kernel) == 0
    green = drawn[..., 1].astype(float)
    assert green[well_outside].min() > 215
    assert np.mean(green[well_inside] < 215) > 0.75
    assert 0.3 < inside.mean() < 0.8
