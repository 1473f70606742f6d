"""The guard against misread formats: what another reader shows otherwise is not used."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

import eosin.index.read_slide as read_slide_module
import eosin.slides.header as header_module
from eosin.errors import UserError
from eosin.index import other_reader
from eosin.index.inspect import inspect_index
from eosin.index.overview import Overview, read_overview
from eosin.index.plan import open_scan
from eosin.index.publish import publish_snapshot, verified_early
from eosin.index.scan import scan_shard
from eosin.layout import IndexLayout
from eosin.slides.header import OpenedSlide
from eosin.slides.table import level_table
from eosin.storage import open_store
from tests.support.indexing import LOG, config_for, index, make_slides, rows_of
from tests.support.slide_files import (
    EXPLICIT,
    halved,
    tissue_picture,
    write_aperio,
    write_dicom,
    write_ome,
    write_philips,
    write_tiff,
)

_read = header_module._read


def test_one_slide_of_each_vendor_and_layout_is_checked(tmp_path: Path) -> None:
    slides = make_slides(tmp_path / "slides", 3)
    write_tiff(slides / "b.tif", [tissue_picture(700, 800)], compression="deflate")
    write_dicom(slides / "c.dcm", tissue_picture(700, 800), syntax=EXPLICIT)
    (slides / "photo.png").write_bytes(b"\x89PNG")
    manifest = index(config_for(slides, tmp_path / "index"))
    assert (manifest.num_verified, manifest.num_ok, manifest.num_not_slides) == (3, 5, 1)
    text = str(inspect_index(str(tmp_path / "index")))
    assert "checked    3 against another reader" in text and "others     1 object " in text


def test_the_smallest_slide_is_checked_while_others_are_read(tmp_path: Path) -> None:
    slides = make_slides(tmp_path / "slides", 3)
    config = config_for(slides, tmp_path / "index")
    plan, store = open_scan(config), open_store(str(tmp_path / "index"))
    with verified_early(plan, None) as watch:
        scan_shard(config, 0, 1, LOG, plan=plan, watch=watch)
    smallest = min(plan.units, key=lambda unit: (unit.objects[0].size_bytes, unit.key))
    before = [each for each in store.list("tiles/") if each.key.endswith(".txt")]
    assert publish_snapshot(config, 1, LOG, plan=plan).num_verified == 1
    row = rows_of(str(tmp_path / "index"))[smallest.key]
    assert [each.key for each in before] == [IndexLayout.other_reading(row.digest)]
    assert before == [each for each in store.list("tiles/") if each.key.endswith(".txt")], "not asked again"


def test_tiles_in_another_order_are_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that scrambles what it reads: the picture is not OpenSlide's, and the slide is not used."""

    def scrambled(*arguments: object) -> Overview:
        seen = read_overview(*arguments)  # type: ignore[arg-type]
        half = seen.pixels.shape[0] // 2
        rolled = np.roll(seen.pixels, half, axis=(0, 1))
        return Overview(rolled, seen.pixel_x_px, seen.pixel_y_px, seen.num_damaged)

    monkeypatch.setattr(read_slide_module, "read_overview", scrambled)
    slides = make_slides(tmp_path / "slides", 1)
    with pytest.raises(UserError, match="1 disagrees"):
        index(config_for(slides, tmp_path / "index"))
    row = rows_of(str(tmp_path / "index"))["slide-0.svs"]
    assert row.status == "disagrees" and "another reader" in row.detail
    assert "do not use it" in str(inspect_index(str(tmp_path / "index")))


def scrambled_level(number: int) -> Callable[..., OpenedSlide]:
    def read(*arguments: object) -> OpenedSlide:
        slide = _read(*arguments)  # type: ignore[arg-type]
        rows = level_table(slide.header.levels[number], slide.tiles)
        rows[:] = np.roll(rows, len(rows) // 3)
        return slide

    return read


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    "write",
    [
        lambda folder, pixels: write_aperio(folder / "a.svs", pixels, mpp=0.5, compression="jpeg"),
        lambda folder, pixels: write_aperio(folder / "a.svs", pixels, mpp=0.5, compression=33005),
        lambda folder, pixels: write_tiff(folder / "a.tif", pixels, compression="lzw", predictor=True),
        lambda folder, pixels: write_ome(folder / "a.ome.tif", pixels, compression="jpeg"),
        lambda folder, pixels: write_philips(folder / "a.tiff", pixels),
        lambda folder, pixels: [
            write_dicom(folder / f"{i}.dcm", each, level=i, syntax=EXPLICIT, mpp=(0.5, 0.5))
            for i, each in enumerate(pixels)
        ],
        lambda folder, pixels: [
            write_dicom(folder / f"{i}.dcm", each, level=i) for i, each in enumerate(pixels)
        ],
    ],
    ids=["aperio", "aperio-33005", "tiff-lzw", "ome", "philips", "dicom-native", "dicom-jpeg"],
)
def test_one_scrambled_level_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., object], number: int
) -> None:
    """The overview is made from the coarsest level, which is right."""
    slides, finest = tmp_path / "slides", tissue_picture(2048, 2304)
    slides.mkdir()
    write(slides, [finest, halved(finest), halved(finest, 2), halved(finest, 3)])
    assert index(config_for(slides, tmp_path / "right")).num_verified == 1
    monkeypatch.setattr(header_module, "_read", scrambled_level(number))
    with pytest.raises(UserError, match="1 disagrees"):
        index(config_for(slides, tmp_path / "index"))
    (row,) = rows_of(str(tmp_path / "index")).values()
    assert row.detail.startswith(f"level {number} is not as another reader shows it")


def test_a_reader_that_dies_of_a_slide_ends_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSlide 4.0 does so on a DICOM object whose extended offset table does not ascend."""

    def swapped(dataset: Dataset) -> None:
        for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
            table = np.frombuffer(getattr(dataset, name), "<u8").copy()
            table[[3, 4]] = table[[4, 3]]
            setattr(dataset, name, table.tobytes())

    slides = tmp_path / "slides"
    slides.mkdir()
    write_dicom(slides / "a.dcm", tissue_picture(700, 900), table="extended", change=swapped)
    manifest = index(config_for(slides, tmp_path / "index"))
    assert (manifest.num_ok, manifest.num_verified) == (1, 0)
    monkeypatch.setattr(other_reader, "_TIMEOUT_S", 0.01)
    write_tiff(slides / "b.tif", [tissue_picture(700, 800)], compression="deflate")
    assert index(config_for(slides, tmp_path / "other")).num_verified == 0
