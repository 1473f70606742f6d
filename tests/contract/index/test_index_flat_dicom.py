"""Hundreds of DICOM series in one flat folder: shared out over the shards, and the same in any sharding."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from eosin.index.scan import scan_shard
from tests.support.counting import CountingStore
from tests.support.indexing import LOG, config_for, count_stores, index, snapshot_bytes, statuses
from tests.support.slide_files import halved, tissue_picture, write_dicom

NUM_SERIES = 24


@pytest.fixture
def counted() -> Iterator[list[CountingStore]]:
    yield from count_stores()


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files a series, named so that no name tells which belong together."""
    folder = tmp_path_factory.mktemp("flat")
    for i in range(NUM_SERIES):
        pixels = tissue_picture(300, 320, seed=i)
        write_dicom(folder / f"{i * 7 % 24:02d}.dcm", pixels, series=f"1.2.{i}", mpp=(2.0, 2.0))
        write_dicom(
            folder / f"{50 + i * 5 % 24}.dcm", halved(pixels), series=f"1.2.{i}", level=1, mpp=(2.0, 2.0)
        )
    (folder / "99.dcm").write_bytes(b"\0" * 300)
    return folder


def test_shards_share_the_series_of_a_flat_folder(flat: Path, tmp_path: Path) -> None:
    config = config_for(flat, tmp_path / "index")
    shares = [scan_shard(config, shard, 4, LOG).num_slides for shard in range(4)]
    assert sum(shares) == NUM_SERIES + 1 and max(shares) < NUM_SERIES / 2 and min(shares) > 0


def test_any_sharding_of_a_flat_folder_gives_the_same_bytes(flat: Path, tmp_path: Path) -> None:
    for name, num_shards, order in (("one", 1, [0]), ("five", 5, [3, 1, 4, 0, 2])):
        index(config_for(flat, tmp_path / name), num_shards, order)
    assert snapshot_bytes(tmp_path / "one") == snapshot_bytes(tmp_path / "five")
    found = statuses(tmp_path / "one")
    assert found.pop("99.dcm") == "not-a-slide"
    assert len(found) == NUM_SERIES and set(found.values()) == {"ok"}


def test_the_series_are_told_once_by_one_block_a_file(
    flat: Path, tmp_path: Path, counted: list[CountingStore]
) -> None:
    config = config_for(flat, tmp_path / "index")
    for shard in range(3):
        num_slides = scan_shard(config, shard, 3, LOG).num_slides
        touched = {each.key for each in counted[2 * shard].ranges}
        expected = 2 * NUM_SERIES + 1 if shard == 0 else 2 * num_slides
        assert len(touched) in (expected, expected - 1), "only the first shard looks into all files"
    index(config, 3)  # whose guard reads one slide of the kind, once
    counted.clear()
    index(config, 3)
    scan_shard(config_for(flat, tmp_path / "index"), 0, 2, LOG)
    assert not any(store.ranges for store in counted if store.uri.endswith(flat.name))
