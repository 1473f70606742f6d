"""What indexing asks of the store, format by format: a dozen GETs and a MiB beside tables and tissue."""

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from eosin.demo.server import LocalS3
from eosin.index.overview import smallest_sufficient_level
from eosin.index.scan import scan_shard
from eosin.index.snapshot import open_snapshot
from eosin.index.sources import figures_of
from eosin.slides.table import level_table
from tests.support.counting import CountingStore
from tests.support.faults import Fault, FaultProxy
from tests.support.indexing import LOG, config_for, count_stores, index, upload
from tests.support.regions import all_tiles
from tests.support.slide_files import (
    EXPLICIT,
    JPEG2000,
    halved,
    tissue_picture,
    write_aperio,
    write_dicom,
    write_ome,
    write_philips,
    write_sparse_bigtiff,
    write_tiff,
)

PIXELS = tissue_picture(1408, 1664, seed=2)
LEVELS = [PIXELS, *(halved(PIXELS, times) for times in (1, 2, 3, 4))]
WRITERS: dict[str, Callable[[Path], Path]] = {
    "aperio.svs": lambda path: write_aperio(path, LEVELS, compression="jpeg"),
    "aperio-33005.svs": lambda path: write_aperio(path, LEVELS[2:], compression=33005),
    "deflate.tif": lambda path: write_tiff(path, LEVELS, compression="deflate"),
    "plain-big.tif": lambda path: write_tiff(path, LEVELS, big=True),
    "ome.ome.tif": lambda path: write_ome(path, LEVELS, compression="jpeg"),
    "philips.tiff": lambda path: write_philips(path, LEVELS),
    "vast.svs": lambda path: write_sparse_bigtiff(path, side_px=30_000),
    "basic.dcm": lambda path: write_dicom(path, PIXELS),
    "extended.dcm": lambda path: write_dicom(path, PIXELS, table="extended"),
    "native.dcm": lambda path: write_dicom(path, PIXELS, syntax=EXPLICIT),
    "j2k.dcm": lambda path: write_dicom(path, LEVELS[2], syntax=JPEG2000, sparse=True),
}


@pytest.fixture
def counted() -> Iterator[list[CountingStore]]:
    yield from count_stores()


@pytest.mark.usefixtures("levels_of_several_pictures")
@pytest.mark.parametrize("name", WRITERS)
def test_a_dozen_requests_and_a_mebibyte(tmp_path: Path, counted: list[CountingStore], name: str) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    size_bytes = WRITERS[name](slides / name).stat().st_size
    index(config_for(slides, tmp_path / "index"))
    snapshot = open_snapshot(str(tmp_path / "index"))
    row = snapshot.rows[0]
    assert row.status == "ok" and row.header.access == "tiles", row.detail
    store = next(each for each in counted if each.uri.endswith("slides"))
    assert not store.downloads and not store.gets
    tables = all_tiles(snapshot, row)
    level = row.header.levels[smallest_sufficient_level(row.header, 8.0)]
    tissue = level_table(level, tables)["size_bytes"]
    num_ranges, num_bytes = store.reads_of(name)
    tested = sum(int(level_table(each, tables)["size_bytes"].max()) for each in row.header.levels)
    header_ranges = num_ranges - np.count_nonzero(tissue) - len(row.header.levels)
    assert header_ranges + len(row.header.levels) <= 12, f"{header_ranges} for the header"
    beside = num_bytes - int(tissue.sum()) - tables.nbytes
    assert beside <= 2**20 + tested, f"{beside} bytes of {size_bytes}"


@pytest.mark.parametrize("name", ["aperio.svs", "plain-big.tif", "philips.tiff"])
def test_what_came_with_the_header_is_not_read_again(
    tmp_path: Path, counted: list[CountingStore], name: str
) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    WRITERS[name](slides / name)
    scan_shard(config_for(slides, tmp_path / "index"), 0, 1, LOG)
    store = next(each for each in counted if each.uri.endswith("slides"))
    read = sorted((each.start, each.start + each.length) for each in store.ranges if each.length > 132)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(read)), read


def test_the_requests_of_a_first_scan_are_told_beforehand(
    bucket_uri: str, s3: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six TIFFs and two series of three instances, through a proxy that sees each request."""
    for i in range(6):
        write_aperio(tmp_path / f"{i}.svs", LEVELS[:3], compression="jpeg")
    for i in range(2):
        for level in range(3):
            name = tmp_path / f"{i}-{level}.dcm"
            write_dicom(name, LEVELS[level], level=level, series=f"1.2.{i}", sparse=True)
    upload(tmp_path, f"{bucket_uri}/slides")
    config = config_for(f"{bucket_uri}/slides", f"{bucket_uri}/index")
    (figures,) = figures_of(config.slides)
    told = re.search(r"about (\d+) to index them", str(figures))
    assert told is not None
    with FaultProxy(s3.endpoint_url, lambda method, path: Fault.NONE) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint_url)
        scan_shard(config, 0, 1, LOG)
    assert 0.8 * int(told.group(1)) <= len(proxy.seen) <= 1.2 * int(told.group(1))
