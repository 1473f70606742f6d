"""Formats that OpenSlide alone places: staged whole, indexed and drawn from like any other, same pixels."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openslide
import pytest

from eosin.config.patches import PatchesConfig
from eosin.index.inspect import inspect_index
from eosin.index.overview import read_local_overview
from eosin.index.snapshot import Snapshot, open_snapshot
from eosin.observability import RunLog
from eosin.patches.geometry import box_of
from eosin.patches.request import PatchBatch, PatchRequest
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.stream import PatchStream
from eosin.slides.errors import SlideError
from eosin.slides.local import open_local, over_white
from tests.support.indexing import config_for, index, rows_of
from tests.support.openslide_containers import write_czi, write_mirax, write_sakura, write_vms, write_vmu
from tests.support.openslide_files import (
    write_argos,
    write_ndpi,
    write_scn,
    write_trestle,
    write_ventana,
)
from tests.support.regions import regions_of
from tests.support.slide_files import tissue_picture, write_dicom

Pixels = npt.NDArray[np.uint8]
PIXELS = tissue_picture(768, 896, seed=5)
# Where its first object lies, how it is written into the folder of slides, and of how many objects it is.
WRITERS: dict[str, tuple[str, Callable[[Path], Path], int]] = {
    "leica": ("a.scn", lambda folder: write_scn(folder / "a.scn", PIXELS), 1),
    "trestle": ("a.tif", lambda folder: write_trestle(folder / "a.tif", PIXELS), 1),
    "ndpi": ("a.ndpi", lambda folder: write_ndpi(folder / "a.ndpi", PIXELS), 1),
    "vms": ("case/s.vms", lambda folder: write_vms(folder / "case", "s", PIXELS), 4),
    "vmu": ("case/s.vmu", lambda folder: write_vmu(folder / "case", "s", PIXELS), 4),
    "mirax": ("deep/größe 1.mrxs", lambda folder: write_mirax(folder / "deep", "größe 1", PIXELS), 5),
    "ventana-bif": ("a.bif", lambda folder: write_ventana(folder / "a.bif", PIXELS), 1),
    "ventana-tiff": ("a.tif", lambda folder: write_ventana(folder / "a.tif", PIXELS, overlap_px=0), 1),
    "sakura": ("a.svslide", lambda folder: write_sakura(folder / "a.svslide", PIXELS), 1),
    "zeiss": ("a.czi", lambda folder: write_czi(folder / "a.czi", PIXELS), 1),
    "argos": ("a.avs", lambda folder: write_argos(folder / "a.avs", PIXELS), 1),
}


def indexed(tmp_path: Path, *names: str) -> Snapshot:
    slides = tmp_path / "slides"
    slides.mkdir()
    for name in names:
        WRITERS[name][1](slides)
    index(config_for(slides, tmp_path / "index"))
    return open_snapshot(str(tmp_path / "index"))


def from_oracle(slide: openslide.OpenSlide, x: int, y: int, level: int, width: int, height: int) -> Pixels:
    return over_white(np.asarray(slide.read_region((x, y), level, (width, height))))


@pytest.mark.parametrize("name", WRITERS)
def test_it_is_indexed_and_read_as_openslide_does(tmp_path: Path, name: str) -> None:
    key, _, num_objects = WRITERS[name]
    snapshot = indexed(tmp_path, name)
    assert [row.slide for row in snapshot.rows] == [key]
    row = snapshot.rows[0]
    assert row.status == "ok" and row.header.access == "local" and len(row.header.objects) == num_objects
    assert (row.header.mpp_x, row.header.mpp_y) == pytest.approx((0.5, 0.5), rel=0.01)
    reader = regions_of(snapshot, row)
    with openslide.OpenSlide(tmp_path / "slides" / key) as oracle:
        assert row.header.vendor == oracle.properties["openslide.vendor"]
        sizes = [(level.width_px, level.height_px) for level in row.header.levels]
        assert sizes == list(oracle.level_dimensions)
        for level, size in enumerate(sizes):
            wanted = from_oracle(oracle, 0, 0, level, *size)
            np.testing.assert_array_equal(reader.read_region((0, 0), level, size), wanted)
        width, height = min(sizes[0][0], 896), min(sizes[0][1], 768)
        drawn = reader.read_region((0, 0), 0, (width, height)).astype(int)
        assert np.abs(drawn - PIXELS[:height, :width]).mean() < 12, "and OpenSlide shows what was drawn"


def stream_of(snapshot: Snapshot, **changes: object) -> PatchStream:
    wanted = {"patch_px": 96, "mpp": (0.5, 1.0), "min_foreground": 0.2, **changes}
    config = PatchesConfig.model_validate(wanted)
    return PatchStream(Sampler(snapshot, config, seed=3), RunLog("test"), num_threads=2)


def stream(snapshot: Snapshot, **changes: object) -> PatchBatch:
    with stream_of(snapshot, **changes) as patches:
        (batch,) = patches.batches([(0, range(64))])
    return batch


def assert_openslides(snapshot: Snapshot, request: PatchRequest, pixels: Pixels) -> None:
    row = snapshot.rows[request.slide]
    box = box_of(request, row.header, 96, 0.1)
    down = row.header.levels[box.level].downsample
    x, y = round(box.x_px * down), round(box.y_px * down)
    with openslide.OpenSlide(f"{snapshot.slides_uri.removeprefix('file://')}/{row.slide}") as slide:
        region = from_oracle(slide, x, y, box.level, box.width_px, box.height_px)
    np.testing.assert_array_equal(pixels, region, row.slide)


def test_patches_of_every_format_stream_together_as_openslide_shows_them(tmp_path: Path) -> None:
    names = [name for name in WRITERS if name not in ("trestle", "vmu")]  # those lie where others do
    snapshot = indexed(tmp_path, *names)
    assert all(row.status == "ok" for row in snapshot.rows)
    batches = {
        reader: stream(snapshot, reader=reader, stage_dir=str(tmp_path / "stage"))
        for reader in ("range", "stage")
    }
    requests = batches["range"].requests
    assert batches["stage"].requests == requests
    assert {request.slide for request in requests} == set(range(len(names)))
    for place, request in enumerate(requests):
        assert_openslides(snapshot, request, batches["range"].pixels[place])
        assert_openslides(snapshot, request, batches["stage"].pixels[place])


def test_a_mirax_slide_is_pinned_by_each_of_its_objects(tmp_path: Path) -> None:
    snapshot = indexed(tmp_path, "mirax", "zeiss")
    assert {request.slide for request in stream(snapshot).requests} == {0, 1}
    changed = tmp_path / "slides" / "deep" / "größe 1" / "Data0001.dat"
    changed.write_bytes(changed.read_bytes() + b"!")
    after = stream(snapshot, stage_dir=str(tmp_path / "stage"))
    assert {snapshot.rows[request.slide].slide for request in after.requests} == {"a.czi"}


def test_a_mirax_slide_that_is_not_whole_is_named(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    write_czi((slides.mkdir() or slides) / "good.czi", PIXELS)
    for name in ("no-index", "no-first", "no-data"):
        write_mirax(slides, name, PIXELS)
    shutil.rmtree(slides / "no-index")
    (slides / "no-first.mrxs").unlink()
    (slides / "no-data" / "Data0001.dat").unlink()
    index(config_for(slides, tmp_path / "index"))
    rows = rows_of(tmp_path / "index")
    assert {name: row.status for name, row in rows.items()} == {
        "good.czi": "ok", "no-data.mrxs": "corrupt-header", "no-first/Slidedat.ini": "not-a-slide",
        "no-index.mrxs": "not-a-slide",
    }  # fmt: skip
    assert rows["no-index.mrxs"].detail == "Slidedat.ini of its folder no-index/ is missing"
    assert "no-first.mrxs" in rows["no-first/Slidedat.ini"].detail
    assert " no-data/Data0001.dat" in rows["no-data.mrxs"].detail, "and not where it was staged"


def test_a_mirax_slide_needs_nothing_of_its_first_object_but_the_name(tmp_path: Path) -> None:
    """Which may be in capitals, as some archives write them."""
    slides = tmp_path / "slides"
    write_mirax(slides, "a", PIXELS).write_bytes(b"")
    write_mirax(slides, "b", PIXELS).rename(slides / "b.MRXS")
    index(config_for(slides, tmp_path / "index"))
    assert {name: row.status for name, row in rows_of(tmp_path / "index").items()} == {
        "a.mrxs": "ok",
        "b.MRXS": "ok",
    }
    read = stream(open_snapshot(str(tmp_path / "index")), stage_dir=str(tmp_path / "stage"))
    assert {request.slide for request in read.requests} == {0, 1}


def test_slides_of_one_folder_stage_their_own_objects(tmp_path: Path) -> None:
    folder = tmp_path / "slides" / "case"
    for name in ("s", "s 10", "other"):
        write_vms(folder, name, PIXELS)
    write_vmu(folder, "u", PIXELS)
    index(config_for(folder.parent, tmp_path / "index"))
    rows = rows_of(tmp_path / "index")
    assert {name: row.status for name, row in rows.items()} == dict.fromkeys(
        ("case/other.vms", "case/s 10.vms", "case/s.vms", "case/u.vmu"), "ok"
    )
    assert {len(row.header.objects) for row in rows.values()} == {4}


def damage(path: Path, start: int, stop: int) -> None:
    content = bytearray(path.read_bytes())
    content[start:stop] = bytes(stop - start)
    path.write_bytes(bytes(content))


def test_a_region_that_fails_spoils_no_other(tmp_path: Path) -> None:
    path = write_mirax(tmp_path, "a", PIXELS)
    damage(tmp_path / "a" / "Data0000.dat", 4, 200)
    slide = open_local(path)
    right = slide.read_region(400, 300, 0, 96, 96)
    with pytest.raises(SlideError, match=r"a\.mrxs"):
        slide.read_region(0, 0, 0, 32, 32)
    np.testing.assert_array_equal(slide.read_region(400, 300, 0, 96, 96), right)
    slide.close()


@pytest.mark.parametrize(("num_bytes", "status"), [(196, "ok"), (400_000, "corrupt-tile")])
def test_a_damaged_spot_costs_no_slide_but_damage_all_over_does(
    tmp_path: Path, num_bytes: int, status: str
) -> None:
    slides = tmp_path / "slides"
    write_czi((slides.mkdir() or slides) / "good.czi", PIXELS)
    write_mirax(slides, "a", tissue_picture(1500, 1700, seed=6))
    data = slides / "a" / "Data0000.dat"
    damage(data, 4, min(4 + num_bytes, data.stat().st_size))
    index(config_for(slides, tmp_path / "index", "index.tissue.mpp=0.5"))
    row = rows_of(tmp_path / "index")["a.mrxs"]
    assert row.status == status
    assert ("1 tile cannot be decoded" if status == "ok" else "a.mrxs") in row.detail


def examine(path: Path) -> str:
    """What the index makes of a staged copy: `ok` or the reason. Anything else it raises fails the test."""
    try:
        slide = open_local(path)
        header = slide.header(())
        read_local_overview(slide, replace(header, mpp_x=0.5, mpp_y=0.5), mpp=8.0)
    except SlideError as error:
        assert error.message and str(path.parent) not in error.message
        return error.reason
    return "ok"


@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_slide_has_a_reason(tmp_path: Path, name: str) -> None:
    key, write, _ = WRITERS[name]
    (tmp_path / "whole").mkdir()
    write(tmp_path / "whole")
    files = sorted(each for each in (tmp_path / "whole").rglob("*") if each.is_file())
    rng = np.random.default_rng(len(name))
    found = []
    for number in range(12):
        copy = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", copy)
        for _ in range(1 + number % 4):
            damaged = copy / files[int(rng.integers(len(files)))].relative_to(tmp_path / "whole")
            data = bytearray(damaged.read_bytes())
            at = int(rng.integers(min(len(data), 2000) if number % 2 else len(data)))
            patch = (b"\xff\xff\xff\x7f", b"\0" * 8, b"\xff", rng.bytes(4))[int(rng.integers(4))]
            data[at : at + len(patch)] = patch
            damaged.write_bytes(bytes(data))
        found.append(examine(copy / key))
    assert set(found) <= {"ok", "not-a-slide", "corrupt-header", "corrupt-tile", "unsupported-layout"}
    assert examine(tmp_path / "whole" / key) == "ok"


def test_inspect_tells_what_is_staged_and_uneven_resolution(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    write_czi((slides.mkdir() or slides) / "a.czi", PIXELS)
    write_dicom(slides / "b.dcm", PIXELS, mpp=(0.25, 0.5))
    index(config_for(slides, tmp_path / "index"))
    text = str(inspect_index(str(tmp_path / "index")))
    assert "0.25 × 0.5 1 · 0.5 1" in text and "jpeg 1 · staged 1" in text
    assert "896 × 768 px, 1/1, by OpenSlide" in str(inspect_index(str(tmp_path / "index"), "a.czi"))
