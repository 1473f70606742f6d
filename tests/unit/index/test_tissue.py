"""Tissue against glass: also where there is only one of them, and where someone drew on the slide."""

import numpy as np
import numpy.typing as npt
import pytest

from eosin.config.index import TissueConfig
from eosin.index.overview import Overview
from eosin.index.tissue import detect_tissue, pen_marks
from tests.support.slide_files import tissue_picture

Pixels = npt.NDArray[np.uint8]
OTSU = TissueConfig()
GLASS = (243, 242, 244)


def found(pixels: Pixels, config: TissueConfig = OTSU, mpp: float = 8.0) -> npt.NDArray[np.bool_]:
    return detect_tissue(Overview(pixels, 1.0, 1.0, 0), mpp, mpp, config).array


def noisy(height: int, width: int, colour: tuple[int, int, int], spread: int = 5, seed: int = 1) -> Pixels:
    grain = np.random.default_rng(seed).integers(-spread, spread + 1, (height, width, 3))
    return np.clip(np.array(colour) + grain, 0, 255).astype(np.uint8)


def disc(height: int, width: int, radius: float) -> npt.NDArray[np.bool_]:
    y, x = np.mgrid[:height, :width]
    return np.asarray((y - height / 2) ** 2 + (x - width / 2) ** 2 < radius**2)


@pytest.mark.parametrize("method", ["otsu", "saturation"])
def test_an_island_on_glass_is_found(method: str) -> None:
    mask = found(tissue_picture(300, 300), TissueConfig(method=method))  # type: ignore[arg-type]
    truth = disc(300, 300, 100)
    assert (mask & truth).sum() / (mask | truth).sum() > 0.95


@pytest.mark.parametrize(
    "colour", [(214, 130, 180), (120, 70, 150), (236, 205, 225), (200, 160, 120), (150, 170, 205)]
)
def test_a_slide_of_nothing_but_tissue_is_all_tissue(colour: tuple[int, int, int]) -> None:
    assert found(noisy(200, 200, colour, spread=12)).mean() > 0.98


def test_a_slide_of_pale_and_dark_tissue_keeps_the_pale() -> None:
    pixels = noisy(200, 200, (233, 200, 222), spread=8)
    pixels[:, :100] = noisy(200, 100, (90, 50, 130), spread=8)
    assert found(pixels).mean() > 0.98


@pytest.mark.parametrize("glass", [GLASS, (255, 255, 255), (225, 224, 226), (235, 238, 234)])
def test_bare_glass_holds_nothing(glass: tuple[int, int, int]) -> None:
    assert not found(noisy(300, 300, glass, spread=4)).any()


@pytest.mark.parametrize("pen", [(20, 160, 60), (25, 60, 190), (60, 160, 40), (230, 20, 20), (20, 20, 22)])
def test_pen_is_no_tissue(pen: tuple[int, int, int]) -> None:
    pixels = tissue_picture(300, 300)
    pixels[10:30, 20:280] = pen
    mask = found(pixels)
    assert not mask[8:32, 18:282].any()
    assert mask[disc(300, 300, 95)].mean() > 0.97


@pytest.mark.parametrize("pen", [(28, 60, 150), (30, 110, 60), (20, 90, 170)])
@pytest.mark.parametrize("cover", [0.75, 0.9])
def test_thin_ink_through_which_the_slide_shows_is_no_tissue(pen: tuple[int, int, int], cover: float) -> None:
    pixels = tissue_picture(300, 300)
    stroke = np.zeros((300, 300), bool)
    stroke[20:30, 20:280] = stroke[100:110, 20:280] = True
    pixels[stroke] = (pixels[stroke] * (1 - cover) + np.array(pen) * cover).astype(np.uint8)
    mask = found(pixels)
    assert not mask[stroke].any() and mask[disc(300, 300, 95) & ~stroke].mean() > 0.9


@pytest.mark.parametrize(
    "stain", [(214, 130, 180), (90, 50, 130), (160, 100, 60), (185, 60, 90), (120, 125, 170)]
)
def test_no_stain_is_taken_for_pen(stain: tuple[int, int, int]) -> None:
    assert not pen_marks(noisy(100, 100, stain, spread=10)).any()


def test_specks_are_dropped_and_pinholes_filled() -> None:
    pixels = noisy(200, 200, GLASS, spread=2)
    pixels[50:150, 50:150] = (200, 110, 170)
    pixels[90:96, 90:96] = GLASS
    pixels[10:15, 10:15] = (200, 110, 170)
    mask = found(pixels, TissueConfig(min_area_um2=60 * 64))
    assert mask[90:96, 90:96].all() and not mask[8:17, 8:17].any()
    small = found(pixels, TissueConfig(min_area_um2=10 * 64))
    assert small[11:14, 11:14].all()


def test_gray_shadow_and_dust_are_no_tissue() -> None:
    pixels = noisy(200, 200, GLASS, spread=3)
    pixels[40:100, 40:160] = (150, 150, 151)
    assert not found(pixels).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 3), (4, 200)])
def test_the_smallest_pictures_are_no_trouble(shape: tuple[int, int]) -> None:
    pixels = noisy(*shape, (200, 110, 170))
    assert found(pixels, TissueConfig(min_area_um2=0)).shape == shape
