"""What is out of focus is left out, told by the sizes of tiles; what is merely smooth or pale is not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import openslide
import pytest

from eosin.demo.synthetic import SyntheticConfig
from eosin.index.focus import Coarser, Focus, focus_of
from eosin.slides.model import SlideHeader, TileTable
from eosin.storage import open_store
from tests.support.indexing import config_for, index, rows_of
from tests.support.patches import write_slide
from tests.support.regions import read_header
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


@pytest.mark.parametrize(("sigma_um", "quality"), [(2, 70), (2, 40), (4, 70)])
def test_blur_at_half_a_micrometre_a_pixel_is_left_out(tmp_path: Path, sigma_um: int, quality: int) -> None:
    with openslide.OpenSlide(sample("data", "slides", "TCGA-CR-7395-01A-01-TS1.svs")) as slide:
        pixels = halved(np.array(slide.read_region((0, 0), 0, (4416, 3552)))[..., :3])
    options = {"mpp": 0.5, "compressionargs": {"level": quality}}
    sharp = masks(tmp_path / "sharp", pixels, **options)
    half = pixels.shape[1] // 2
    pixels[:, half:] = cv2.GaussianBlur(pixels[:, half:], (0, 0), sigma_um / 0.5)
    blurred = masks(tmp_path / "blurred", pixels, **options)
    middle = sharp.shape[1] // 2
    assert sharp[:, : middle - 8].mean() > 0.5 and sharp[:, middle + 8 :].mean() > 0.5
    assert blurred[:, : middle - 8].sum() >= 0.98 * sharp[:, : middle - 8].sum()
    assert blurred[:, middle + 8 :].sum() < 0.1 * sharp[:, middle + 8 :].sum()


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


def coarser(ratio: npt.NDArray[np.float32], sizes: npt.NDArray[np.float32]) -> Coarser:
    """A level four times coarser, of tiles as large, to which `sizes` has `ratio`, tile by tile of it."""
    sums = sizes.reshape(ratio.shape[0], 4, ratio.shape[1], 4).sum((1, 3))
    return Coarser(sizes, (sums / ratio).astype(np.float32), 960.0, 960.0, 4.0)


def test_smooth_tissue_is_told_from_blur_by_a_coarser_level() -> None:
    """Two fields of half the usual bytes: one holds no more than the coarser level does, one much more."""
    sizes = np.full((24, 24), 9000, np.float32)
    sizes[4:12, 4:12] = sizes[16:24, 16:24] = 4500
    ratio = np.full((6, 6), 11, np.float32)
    ratio[1:3, 1:3], ratio[4:6, 4:6] = 6.7, 8.5
    tissue = np.ones((360, 360), bool)
    found = Focus(sizes, 240, 240, coarser(ratio, sizes)).blurred(tissue, 16, 16, 0.3)
    assert found[60:180, 60:180].all() and found.sum() == 120**2
    assert not Focus(sizes, 240, 240).blurred(tissue, 16, 16, 0.3).any()
    assert not Focus(sizes, 240, 240, coarser(ratio, sizes)).blurred(tissue, 16, 16, 0).any()


def test_a_slide_whose_levels_all_compare_alike_is_kept() -> None:
    """An encoder of its own kind, not blur, where every ratio is low."""
    sizes = np.random.default_rng(1).integers(4000, 9000, (24, 24)).astype(np.float32)
    ratio = np.random.default_rng(2).uniform(6.4, 6.8, (6, 6)).astype(np.float32)
    focus = Focus(sizes, 240, 240, coarser(ratio, sizes))
    assert not focus.blurred(np.ones((360, 360), bool), 16, 16, 0.3).any()


def test_levels_compare_only_where_scale_and_quantisation_do(tmp_path: Path) -> None:
    pixels = tissue_picture(1024, 1024, seed=4)
    for name, down, quality, compares in (("a", 2, 60, True), ("b", 2, 70, False), ("c", 1, 60, False)):
        options: dict[str, Any] = {"mpp": 0.5, "compression": "jpeg"}
        levels = [pixels, halved(pixels, down)]
        path, other = (
            write_aperio(tmp_path / f"{name}{level}.svs", levels, compressionargs={"level": level}, **options)
            for level in (60, quality)
        )
        focus = focus_of(*opened(path), [first_tiles(path)[0], first_tiles(other)[1]])
        assert focus is not None and (focus.coarser is not None) == compares, name


def first_tiles(path: Path) -> list[bytes]:
    """The first tile of each level."""
    header, tiles = opened(path)
    data = path.read_bytes()
    rows = [tiles[level.first_tile].tolist() for level in header.levels]
    return [data[offset : offset + size_bytes] for offset, size_bytes, _ in rows]


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
