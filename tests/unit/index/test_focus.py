"""What is out of focus is left out, told by the sizes of tiles; what is merely smooth or pale is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import openslide
import pytest

from eosin.index.focus import Focus, focus_of
from eosin.slides.header import read_header
from eosin.slides.model import SlideHeader, TileTable
from eosin.slides.synthetic import SyntheticConfig, write_slide
from eosin.storage import open_store
from tests.support.indexing import config_for, index, rows_of
from tests.support.samples import sample
from tests.support.slide_files import halved, tissue_picture, write_aperio

Pixels = npt.NDArray[np.uint8]
TILE_PX = 128


def opened(path: Path) -> tuple[SlideHeader, TileTable]:
    store = open_store(str(path.parent))
    return read_header(store, [store.head(path.name)])


def masks(tmp_path: Path, pixels: Pixels, **write_args: object) -> npt.NDArray[np.bool_]:
    """The tissue mask of a slide of `pixels` at 0.25 mpp, at 8 mpp."""
    slides = tmp_path / "slides"
    slides.mkdir(parents=True, exist_ok=True)
    options = {"compression": "jpeg", "mpp": 0.25, **write_args}
    write_aperio(slides / "a.svs", [pixels, halved(pixels, 2), halved(pixels, 4)], **options)  # type: ignore[arg-type]
    index(config_for(slides, tmp_path / "index"))
    tissue = rows_of(tmp_path / "index")["a.svs"].tissue
    assert tissue is not None
    return tissue.array


def real_tissue() -> Pixels:
    """A field of H&E at 0.25 mpp, wholly tissue."""
    with openslide.OpenSlide(sample("data", "slides", "TCGA-CR-7395-01A-01-TS1.svs")) as slide:
        return np.array(slide.read_region((1200, 900), 0, (1536, 1280)))[..., :3]


@pytest.mark.parametrize("compression", ["jpeg", 33005])
def test_a_blurred_field_of_real_tissue_is_left_out(tmp_path: Path, compression: object) -> None:
    pixels = real_tissue()
    level = {"compressionargs": {"level": 75 if compression == "jpeg" else 40}}
    sharp = masks(tmp_path / "sharp", pixels, compression=compression, **level)
    pixels[:, 768:] = cv2.GaussianBlur(pixels[:, 768:], (0, 0), 10)
    blurred = masks(tmp_path / "blurred", pixels, compression=compression, **level)
    half = sharp.shape[1] // 2
    assert blurred[:, : half - 4].sum() >= 0.99 * sharp[:, : half - 4].sum() > 0
    assert blurred[:, half + 8 :].sum() < 0.1 * sharp[:, half + 8 :].sum()


@pytest.mark.parametrize("side_px", [640, 900])
def test_a_blurred_square_is_left_out_and_nothing_else(tmp_path: Path, side_px: int) -> None:
    pixels = tissue_picture(1800, 1800, seed=side_px)
    every = masks(tmp_path, pixels)
    y = x = slice(900 - side_px // 2, 900 + side_px // 2)
    pixels[y, x] = cv2.GaussianBlur(pixels[y, x], (0, 0), 8)
    kept = masks(tmp_path, pixels)
    inside = np.zeros(every.shape, np.uint8)
    inside[y.start // 32 : y.stop // 32, x.start // 32 : x.stop // 32] = 1
    core, far = cv2.erode(inside, np.ones((9, 9))) > 0, cv2.dilate(inside, np.ones((9, 9))) == 0
    assert (kept & core).sum() < 0.1 * (every & core).sum()
    assert (kept & far).sum() > 0.99 * (every & far).sum() > 0


def test_a_slide_in_focus_keeps_all_its_tissue(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    for seed in range(4):
        write_slide(slides / f"{seed}.svs", seed=seed, config=SyntheticConfig(width_px=2048, height_px=2048))
    index(config_for(slides, tmp_path / "with"))
    index(config_for(slides, tmp_path / "without", "index.tissue.least_detail=0"))
    kept, every = rows_of(tmp_path / "with"), rows_of(tmp_path / "without")
    assert all(kept[name].tissue_mm2 >= 0.995 * every[name].tissue_mm2 for name in every)


def test_a_few_smooth_tiles_are_no_blur() -> None:
    sizes = np.full((20, 20), 9000, np.float32)
    sizes[4, 4] = sizes[10, 3:5] = 900
    focus = Focus(sizes, 240, 240)
    tissue = np.ones((300, 300), bool)
    assert not focus.blurred(tissue, 16, 16, 0.3).any()
    sizes[6:12, 6:12] = 900
    found = focus.blurred(tissue, 16, 16, 0.3)
    assert found[106:164, 106:164].all() and found.sum() <= 90**2


def test_tiles_of_equal_sizes_are_all_kept() -> None:
    rng = np.random.default_rng(0)
    focus = Focus(rng.integers(13_900, 14_100, (30, 30)).astype(np.float32), 240, 240)
    assert not focus.blurred(np.ones((450, 450), bool), 16, 16, 0.3).any()


def test_too_few_tiles_of_tissue_are_not_judged() -> None:
    sizes = np.array([[9000, 9000, 100], [9000, 100, 100]], np.float32)
    assert not Focus(sizes, 512, 512).blurred(np.ones((60, 90), bool), 17, 17, 0.3).any()


def test_lossless_and_coarse_slides_say_nothing_of_focus(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    for name, options, judged in (
        ("jpeg.svs", {"compression": "jpeg", "mpp": 0.25}, True),
        ("deflate.svs", {"compression": "deflate", "mpp": 0.25}, False),
        ("coarse.svs", {"compression": "jpeg", "mpp": 1.0}, False),
        ("unknown.svs", {"compression": "jpeg", "mpp": "?"}, False),
    ):
        header, tiles = opened(write_aperio(tmp_path / name, [pixels], **options))  # type: ignore[arg-type]
        assert (focus_of(header, tiles) is not None) == judged, name
    assert focus_of(replace(header, levels=()), tiles) is None
