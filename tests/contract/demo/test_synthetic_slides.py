"""Synthetic slides are what OpenSlide and tifffile take for slides of a scanner."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile

from eosin.demo.synthetic import COMPRESSIONS, SlideTruth, SyntheticConfig, plan_slide, write_slide
from eosin.demo.synthetic.scene import draw_slide

SEED = 90210
# Not multiples of the tile side, so that the last column and row are padded.
WIDTH_PX, HEIGHT_PX = 1100, 710


def config(compression: str, **changes: object) -> SyntheticConfig:
    # The libtiff in OpenSlide refuses uncompressed tiles whose size is not a multiple of 1024 bytes.
    tile_px = 256 if compression == "none" else 240
    return SyntheticConfig(
        **{"width_px": WIDTH_PX, "height_px": HEIGHT_PX, "compression": compression, "tile_px": tile_px}
        | changes
    )


def read_level(path: Path, level: int) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        image = slide.read_region((0, 0), level, slide.level_dimensions[level])
    return np.asarray(image)[..., :3]


def psnr_db(left: np.ndarray, right: np.ndarray) -> float:
    error = float(np.mean((left.astype(float) - right) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_openslide_sees_an_aperio_slide_with_the_drawn_pixels(tmp_path: Path, compression: str) -> None:
    made = config(compression)
    truth = write_slide(tmp_path / "a.svs", seed=SEED, config=made)
    with openslide.OpenSlide(tmp_path / "a.svs") as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == 0.25
        assert float(slide.properties["openslide.objective-power"]) == 40
        assert slide.level_dimensions == ((1100, 710), (275, 177), (68, 44))
        assert set(slide.associated_images) == {"thumbnail", "label", "macro"}
    drawn = draw_slide(truth, made)
    seen = read_level(tmp_path / "a.svs", 0)
    if compression in ("lzw", "deflate", "none"):
        assert np.array_equal(seen, drawn)
    else:
        assert psnr_db(seen, drawn) > 30


@pytest.mark.parametrize("compression", ["jpeg", "jpeg-rgb", "lzw", "deflate", "none"])
def test_generic_layout_is_a_plain_pyramid_with_its_resolution(tmp_path: Path, compression: str) -> None:
    made = config(compression, layout="generic", mpp=0.5)
    truth = write_slide(tmp_path / "a.tiff", seed=SEED, config=made)
    with openslide.OpenSlide(tmp_path / "a.tiff") as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5)
        assert slide.level_count == 3 and not slide.associated_images
    assert psnr_db(read_level(tmp_path / "a.tiff", 0), draw_slide(truth, made)) > 30


def test_pages_come_in_aperio_order(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.svs", seed=SEED, config=config("jpeg"))
    with tifffile.TiffFile(tmp_path / "a.svs") as tiff:
        assert tiff.is_svs and not tiff.is_bigtiff
        pages = list(tiff.pages)
        assert [page.is_tiled for page in pages] == [True, False, True, True, False, False]
        assert [int(page.subfiletype) for page in pages[-2:]] == [1, 9]
        words = [page.description for page in pages]
    assert all(text.startswith("Aperio Image Library") for text in words)
    assert "|AppMag = 40|MPP = 0.2500|" in words[0]
    assert words[2].splitlines()[1].startswith("1100x710 (240x240) JPEG/YCC Q=80 -> 275x177 ")
    assert words[4].splitlines()[1] == "label 320x320" and words[5].splitlines()[1] == "macro 960x320"


@pytest.mark.parametrize(("compression", "tag"), [("jpeg2000-ycbcr", 33003), ("jpeg2000-rgb", 33005)])
def test_jpeg2000_carries_aperio_s_own_compression_number(tmp_path: Path, compression: str, tag: int) -> None:
    write_slide(tmp_path / "a.svs", seed=SEED, config=config(compression))
    with tifffile.TiffFile(tmp_path / "a.svs") as tiff:
        assert int(tiff.pages[0].compression) == tag


def test_jpeg_tiles_share_their_tables(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.svs", seed=SEED, config=config("jpeg"))
    with tifffile.TiffFile(tmp_path / "a.svs") as tiff:
        page = tiff.pages[0]
        tiff.filehandle.seek(page.dataoffsets[0])
        tile = tiff.filehandle.read(page.databytecounts[0])
        assert page.jpegtables is not None and int(page.photometric) == 6
    with pytest.raises(ValueError):
        simplejpeg.decode_jpeg(tile)
    whole = page.jpegtables[:-2] + tile[2:]
    assert simplejpeg.decode_jpeg(whole).shape == (240, 240, 3)


def test_rgb_jpeg_is_the_trap_it_should_be(tmp_path: Path) -> None:
    made = config("jpeg-rgb")
    truth = write_slide(tmp_path / "a.svs", seed=SEED, config=made)
    with tifffile.TiffFile(tmp_path / "a.svs") as tiff:
        page = tiff.pages[0]
        assert int(page.photometric) == 2
        tiff.filehandle.seek(page.dataoffsets[0])
        tile = tiff.filehandle.read(page.databytecounts[0])
        merged = page.jpegtables[:-2] + tile[2:]
    naive = simplejpeg.decode_jpeg(merged)
    drawn = draw_slide(truth, made)[:240, :240]
    assert psnr_db(naive, drawn) < 15
    # An Adobe marker with transform 0 says that the samples are RGB.
    marked = merged[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + merged[2:]
    assert psnr_db(simplejpeg.decode_jpeg(marked), drawn) > 30


def test_levels_are_area_averages_of_the_finest(tmp_path: Path) -> None:
    made = config("none", width_px=1024, height_px=768)
    write_slide(tmp_path / "a.svs", seed=SEED, config=made)
    finest = read_level(tmp_path / "a.svs", 0)
    for level, side in ((1, 4), (2, 16)):
        mean = cv2.resize(finest, (1024 // side, 768 // side), interpolation=cv2.INTER_AREA)
        seen = read_level(tmp_path / "a.svs", level)
        assert np.abs(seen.astype(int) - mean).max() <= 1


def test_tifffile_and_openslide_agree_in_bigtiff(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.svs", seed=SEED, config=config("jpeg", bigtiff=True))
    with tifffile.TiffFile(tmp_path / "a.svs") as tiff:
        assert tiff.is_bigtiff
        pixels = tiff.pages[0].asarray()
    assert np.array_equal(pixels, read_level(tmp_path / "a.svs", 0))


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[SlideTruth, np.ndarray, np.ndarray]:
    """(truth, pixels without artefacts, pixels with a pen mark and a blurred area) of one slide."""
    clean = SyntheticConfig(width_px=1400, height_px=1400, compression="lzw")
    dirty = SyntheticConfig(width_px=1400, height_px=1400, compression="lzw", pen_marks=1, blurred_areas=1)
    folder = tmp_path_factory.mktemp("spoiled")
    write_slide(folder / "clean.svs", seed=SEED, config=clean)
    truth = write_slide(folder / "dirty.svs", seed=SEED, config=dirty)
    return truth, read_level(folder / "clean.svs", 0), read_level(folder / "dirty.svs", 0)


def filled(polygon_px: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.rint(polygon_px).astype(np.int32)], 1)
    return mask > 0


def test_tissue_lies_where_the_truth_says(spoiled: tuple[SlideTruth, np.ndarray, np.ndarray]) -> None:
    truth, clean, _ = spoiled
    inside = np.any([filled(island.polygon_px, clean.shape) for island in truth.islands], axis=0)
    kernel = np.ones((25, 25), np.uint8)
    well_inside = cv2.erode(inside.astype(np.uint8), kernel) > 0
    well_outside = cv2.dilate(inside.astype(np.uint8), kernel) == 0
    green = clean[..., 1].astype(float)
    assert green[well_outside].min() > 215
    assert np.mean(green[well_inside] < 215) > 0.75
    assert 0.3 < inside.mean() < 0.8


def test_artefacts_lie_where_the_truth_says(spoiled: tuple[SlideTruth, np.ndarray, np.ndarray]) -> None:
    truth, clean, dirty = spoiled
    regions = {region.kind: filled(region.polygon_px, clean.shape) for region in truth.regions}
    assert dirty[regions["pen"]].mean() < 130
    changed = np.abs(dirty.astype(int) - clean).max(axis=2) > 8
    around = np.ones((121, 121), np.uint8)
    spoilt = cv2.dilate((regions["pen"] | regions["blur"]).astype(np.uint8), around) > 0
    assert changed.any() and not changed[~spoilt].any()
    sharp = [cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_64F) for image in (clean, dirty)]
    core = regions["blur"] & ~(cv2.dilate(regions["pen"].astype(np.uint8), np.ones((9, 9), np.uint8)) > 0)
    assert sharp[1][core].var() < 0.2 * sharp[0][core].var()


def test_truth_needs_no_drawing(tmp_path: Path) -> None:
    made = config("jpeg", pen_marks=1)
    assert (
        write_slide(tmp_path / "a.svs", seed=SEED, config=made).to_geojson()
        == plan_slide(SEED, made).to_geojson()
    )
