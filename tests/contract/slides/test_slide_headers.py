"""What the headers of real slides say, and how little of them is read to learn it."""

import pytest

from eosin.slides.model import SlideHeader, TileTable
from eosin.slides.table import level_table
from eosin.storage import open_store
from tests.support.counting import CountingStore
from tests.support.regions import read_header
from tests.support.samples import sample


def real(name: str) -> tuple[SlideHeader, TileTable, CountingStore]:
    store = CountingStore(open_store(str(sample("data", "slides", name).parent)))
    return *read_header(store, [store.head(name)]), store


def test_aperio_jpeg_stored_as_rgb_with_shared_tables() -> None:
    header, tiles, store = real("CMU-1-Small-Region.svs")
    (level,) = header.levels
    assert (header.vendor, header.format, header.access) == ("aperio", "svs", "tiles")
    assert (header.mpp_x, header.mpp_y) == (0.499, 0.499)
    assert (level.width_px, level.height_px, level.tile_width_px, level.tile_height_px) == (
        2220,
        2967,
        240,
        240,
    )
    assert (level.compression, level.color_space) == ("jpeg", "rgb")
    assert level.jpeg_tables is not None and level.jpeg_tables[:4] == b"\xff\xd8\xff\xdb"
    assert level.num_tiles == len(tiles) == 130
    assert len(store.ranges) <= 12 and store.reads_of("CMU-1-Small-Region.svs")[1] <= 2**20


def test_aperio_jpeg2000_of_two_levels_without_mpp() -> None:
    header, tiles, store = real("TCGA-CR-7395-01A-01-TS1.svs")
    assert [(level.width_px, level.height_px) for level in header.levels] == [(4443, 3567), (2221, 1783)]
    assert {(level.compression, level.color_space) for level in header.levels} == {("jpeg2000", "rgb")}
    assert header.levels[1].downsample == pytest.approx(2.0005, abs=1e-4)
    assert (header.mpp_x, header.mpp_y) == (None, None)
    assert [len(level_table(level, tiles)) for level in header.levels] == [252, 63]
    assert header.levels[1].first_tile == 252
    assert len(store.ranges) <= 12


@pytest.mark.parametrize(
    ("name", "size", "compression", "color_space"),
    [
        ("gcp_jpeg.dcm", (1152, 700), "jpeg", "ycbcr"),
        ("gcp_jp2k.dcm", (1696, 812), "jpeg2000", "rgb"),
    ],
)
def test_dicom(name: str, size: tuple[int, int], compression: str, color_space: str) -> None:
    header, tiles, _ = real(name)
    (level,) = header.levels
    assert (header.vendor, header.format) == ("dicom", "dicom")
    assert (level.width_px, level.height_px) == size
    assert (level.compression, level.color_space) == (compression, color_space)
    assert (header.mpp_x, header.mpp_y) == pytest.approx((28.969, 28.968))
    assert len(tiles) == level.num_tiles and (tiles["size_bytes"] > 0).all()
