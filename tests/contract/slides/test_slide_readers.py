"""Every reader against the oracle: pixels as OpenSlide has them, wherever it can read the file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openslide
import pytest

from eosin.slides.decode import over_white
from eosin.slides.model import SlideHeader
from eosin.storage import Store, open_store
from tests.support.openslide_files import write_huron
from tests.support.regions import Regions, read_header
from tests.support.samples import sample
from tests.support.slide_files import (
    EXPLICIT,
    IMPLICIT,
    JPEG,
    JPEG2000,
    halved,
    picture,
    write_aperio,
    write_dicom,
    write_ome,
    write_philips,
    write_tiff,
)

Pixels = npt.NDArray[np.uint8]
LEVELS = [picture(701, 903), halved(picture(701, 903))]
RGB_JPEG = {"compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}}
WRITERS: dict[str, Callable[[Path], Path]] = {
    "aperio-ycbcr.svs": lambda path: write_aperio(path, LEVELS, compression="jpeg"),
    "aperio-rgb.svs": lambda path: write_aperio(path, LEVELS, **RGB_JPEG),
    "aperio-33003.svs": lambda path: write_aperio(path, LEVELS, compression=33003),
    "aperio-33005.svs": lambda path: write_aperio(path, LEVELS, compression=33005),
    "jpeg.tif": lambda path: write_tiff(path, LEVELS, compression="jpeg"),
    "jpeg-rgb.tif": lambda path: write_tiff(path, LEVELS, **RGB_JPEG),
    "lzw.tif": lambda path: write_tiff(path, LEVELS, compression="lzw"),
    "lzw-predictor.tif": lambda path: write_tiff(path, LEVELS, compression="lzw", predictor=True),
    "deflate.tif": lambda path: write_tiff(path, LEVELS, compression="deflate"),
    "deflate-predictor.tif": lambda path: write_tiff(path, LEVELS, compression="deflate", predictor=True),
    "none.tif": lambda path: write_tiff(path, LEVELS),
    "big.tif": lambda path: write_tiff(path, LEVELS, big=True, compression="jpeg"),
    "big-endian.tif": lambda path: write_tiff(path, LEVELS, big=True, byteorder=">"),
    "rgba.tif": lambda path: write_tiff(
        path, [np.dstack([each, np.full_like(each[..., :1], 255)]) for each in LEVELS],
        compression="deflate", extrasamples=["unassalpha"],
    ),
    "gray.tif": lambda path: write_tiff(
        path, [each[..., 1] for each in LEVELS], photometric="minisblack", compression="lzw"
    ),
    "gray-jpeg.tif": lambda path: write_tiff(
        path, [each[..., 1] for each in LEVELS], photometric="minisblack", compression="jpeg"
    ),
    "packbits.tif": lambda path: write_tiff(path, LEVELS, compression="packbits"),
    "philips.tiff": lambda path: write_philips(path, [picture(600, 1024), *(
        halved(picture(600, 1024), times) for times in (1, 2))]),
    "ome.ome.tif": lambda path: write_ome(path, LEVELS[:1], compression="jpeg"),
    "huron.tif": lambda path: write_huron(path, LEVELS),
    "jpeg-basic.dcm": lambda path: write_dicom(path, LEVELS[0]),
    "jpeg-extended.dcm": lambda path: write_dicom(path, LEVELS[0], table="extended"),
    "jpeg-walk.dcm": lambda path: write_dicom(path, LEVELS[0], table="none"),
    "j2k.dcm": lambda path: write_dicom(path, LEVELS[0], syntax=JPEG2000),
    "native.dcm": lambda path: write_dicom(path, LEVELS[0], syntax=EXPLICIT),
    "sparse.dcm": lambda path: write_dicom(path, LEVELS[0], sparse=True, skip=(0, 7)),
}  # fmt: skip
SAMPLES = ("CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs", "gcp_jpeg.dcm", "gcp_jp2k.dcm")


def opened(folder: Path, *names: str) -> tuple[Store, SlideHeader, Regions]:
    store = open_store(str(folder))
    header, tiles = read_header(store, [store.head(name) for name in names])
    return store, header, Regions(store, header, tiles)


def oracle_region(
    slide: openslide.OpenSlide, position: tuple[int, int], level: int, size: tuple[int, int]
) -> Pixels:
    return over_white(np.asarray(slide.read_region(position, level, size)))


def assert_equal_everywhere(path: Path) -> SlideHeader:
    """Levels, resolution and every pixel, and regions that cut tiles and leave the slide."""
    _, header, reader = opened(path.parent, path.name)
    with openslide.OpenSlide(path) as oracle:
        sizes = tuple((level.width_px, level.height_px) for level in header.levels)
        assert sizes[: oracle.level_count] == oracle.level_dimensions
        downsamples = [level.downsample for level in header.levels[: oracle.level_count]]
        assert downsamples == pytest.approx(oracle.level_downsamples)
        for level, size in enumerate(oracle.level_dimensions):
            whole = reader.read_region((0, 0), level, size)
            np.testing.assert_array_equal(whole, oracle_region(oracle, (0, 0), level, size))
        for position, size in (
            ((131, 77), (200, 150)),
            ((-40, -30), (90, 80)),
            ((sizes[0][0] - 50, 5), (99, 40)),
        ):
            region = reader.read_region(position, 0, size)
            assert region.shape == (size[1], size[0], 3)
            np.testing.assert_array_equal(region, oracle_region(oracle, position, 0, size))
    return header


@pytest.mark.parametrize("name", WRITERS)
def test_pixels_equal_openslides(tmp_path: Path, name: str) -> None:
    assert_equal_everywhere(WRITERS[name](tmp_path / name))


@pytest.mark.parametrize("name", SAMPLES)
def test_pixels_equal_openslides_on_real_slides(name: str) -> None:
    assert_equal_everywhere(sample("data", "slides", name))


@pytest.mark.parametrize("name", [name for name in WRITERS if not name.endswith((".dcm", ".ome.tif"))])
def test_mpp_is_openslides(tmp_path: Path, name: str) -> None:
    header = opened(tmp_path, WRITERS[name](tmp_path / name).name)[1]
    with openslide.OpenSlide(tmp_path / name) as oracle:
        assert header.mpp_x == pytest.approx(float(oracle.properties["openslide.mpp-x"]))
        assert header.mpp_y == pytest.approx(float(oracle.properties["openslide.mpp-y"]))


@pytest.mark.parametrize(
    "name", ["a.ome.tif", "b.tif", "c.tif", "implicit.dcm", "planes.dcm"],
)  # fmt: skip
def test_lossless_pixels_are_the_ones_written_where_openslide_reads_less(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    {
        "a.ome.tif": lambda: write_ome(path, LEVELS, compression="deflate"),
        "b.tif": lambda: write_tiff(path, LEVELS, compression="jpeg2000"),
        "c.tif": lambda: write_tiff(path, LEVELS, byteorder=">"),
        "implicit.dcm": lambda: write_dicom(path, LEVELS[0], syntax=IMPLICIT),
        "planes.dcm": lambda: write_dicom(path, LEVELS[0], syntax=EXPLICIT, planes=2),
    }[name]()
    _, header, reader = opened(tmp_path, name)
    for number, level in enumerate(header.levels):
        found = reader.read_region((0, 0), number, (level.width_px, level.height_px))
        np.testing.assert_array_equal(found, LEVELS[number])
    assert len(header.levels) == (1 if name.endswith("dcm") else 2)


def test_a_series_of_dicom_files_is_one_slide_of_several_levels(tmp_path: Path) -> None:
    write_dicom(tmp_path / "b.dcm", halved(picture(701, 903)), level=1, syntax=EXPLICIT)
    write_dicom(tmp_path / "a.dcm", picture(701, 903), syntax=EXPLICIT)
    write_dicom(tmp_path / "c.dcm", picture(90, 120), level=2, kind="LABEL", syntax=EXPLICIT)
    _, header, reader = opened(tmp_path, "c.dcm", "b.dcm", "a.dcm")
    assert [(level.width_px, level.height_px) for level in header.levels] == [(903, 701), (451, 350)]
    with openslide.OpenSlide(tmp_path / "a.dcm") as oracle:
        assert oracle.level_count == 2
        for level, size in enumerate(oracle.level_dimensions):
            found = reader.read_region((0, 0), level, size)
            np.testing.assert_array_equal(found, oracle_region(oracle, (0, 0), level, size))
            np.testing.assert_array_equal(found, LEVELS[level])


def test_dicom_spacing_is_row_then_column(tmp_path: Path) -> None:
    header = opened(tmp_path, write_dicom(tmp_path / "a.dcm", LEVELS[0], mpp=(0.25, 0.5)).name)[1]
    assert (header.mpp_x, header.mpp_y) == pytest.approx((0.25, 0.5))


def test_a_jfif_marker_is_believed_over_the_photometric_tag(tmp_path: Path) -> None:
    """Some OME writers say RGB and store JFIF, which is YCbCr; here OpenSlide shows false colours."""
    path = write_tiff(tmp_path / "jfif.tif", LEVELS[:1], compression="jpeg")
    _, _, reader = opened(tmp_path, path.name)
    right = reader.read_region((0, 0), 0, (903, 701))
    data = bytearray(path.read_bytes())
    photometric = data.index(b"\x06\x01\x03\x00\x01\x00\x00\x00\x06\x00")
    data[photometric + 8] = 2
    path.write_bytes(bytes(data))
    _, header, reader = opened(tmp_path, path.name)
    assert header.levels[0].color_space == "rgb"
    np.testing.assert_array_equal(reader.read_region((0, 0), 0, (903, 701)), right)


def test_jpeg_of_dicom_is_jpeg(tmp_path: Path) -> None:
    header = opened(tmp_path, write_dicom(tmp_path / "a.dcm", LEVELS[0], syntax=JPEG).name)[1]
    assert {level.compression for level in header.levels} == {"jpeg"}
