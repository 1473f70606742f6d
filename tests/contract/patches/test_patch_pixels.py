"""Patches equal what OpenSlide shows, by whichever way their bytes come."""

import sys
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import openslide
import pytest

from eosin.config.patches import PatchesConfig
from eosin.errors import MissingDependency, UserError, install_command
from eosin.index.snapshot import Snapshot
from eosin.observability import RunLog
from eosin.patches.geometry import box_of
from eosin.patches.request import PatchBatch, PatchRequest
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.stream import PatchStream
from tests.support.patches import index_slides, small_levels, write_slides
from tests.support.slide_files import write_aperio, write_tiff


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("pixels")
    slides = write_slides(folder / "slides", 1)
    levels = small_levels(100)
    write_tiff(slides / "lzw.tif", levels, mpp=0.25, tile_px=240, compression="lzw", predictor=True)
    write_aperio(slides / "j2k.svs", levels, mpp=0.25, tile_px=240, compression=33005)
    return index_slides(slides, folder / "index")


def read(snapshot: Snapshot, num: int = 40, **changes: object) -> PatchBatch:
    config = PatchesConfig.model_validate({"patch_px": 96, **changes})
    with PatchStream(Sampler(snapshot, config, seed=8), RunLog("test")) as stream:
        (batch,) = stream.batches([(0, range(num))])
    return batch


def from_openslide(snapshot: Snapshot, request: PatchRequest) -> npt.NDArray[np.uint8]:
    """The patch's region at the level it is read from, in that level's own pixels."""
    row = snapshot.rows[request.slide]
    box = box_of(request, row.header, 96, 0.1)
    down = row.header.levels[box.level].downsample
    with openslide.OpenSlide(f"{snapshot.slides_uri}/{row.slide}") as slide:
        corner = (round(box.x_px * down), round(box.y_px * down))
        region = slide.read_region(corner, box.level, (box.width_px, box.height_px))
    return np.asarray(region.convert("RGB"))


@pytest.mark.parametrize("mpp", [0.25, 1.0])
def test_at_a_level_of_the_slide_pixels_are_openslides(snapshot: Snapshot, mpp: float) -> None:
    batch = read(snapshot, mpp=(mpp,))
    assert len({request.slide for request in batch.requests}) == 3
    for pixels, request in zip(batch.pixels, batch.requests, strict=True):
        off = np.abs(pixels.astype(int) - from_openslide(snapshot, request))
        jpeg2000 = snapshot.rows[request.slide].slide == "j2k.svs"
        assert off.max() <= (1 if jpeg2000 else 0), snapshot.rows[request.slide].slide


@pytest.mark.parametrize("mpp", [0.4, 0.5, 0.9])
def test_between_levels_pixels_are_the_area_average(snapshot: Snapshot, mpp: float) -> None:
    batch = read(snapshot, mpp=(mpp,))
    for pixels, request in zip(batch.pixels, batch.requests, strict=True):
        want = cv2.resize(from_openslide(snapshot, request), (96, 96), interpolation=cv2.INTER_AREA)
        error = np.mean((pixels.astype(float) - want) ** 2)
        decibel = 10 * np.log10(255**2 / max(error, 1e-9))
        scaled = mpp >= 0.5 and snapshot.rows[request.slide].slide == "slide-0.svs"
        assert decibel > (30 if scaled else 60)


def test_staged_and_ranged_reading_deliver_the_same_batches(snapshot: Snapshot, tmp_path: Path) -> None:
    changes = {"mpp": (0.25, 0.5, 1.0), "patches_per_visit": 3}
    ranged = read(snapshot, **changes)
    staged = read(snapshot, reader="stage", stage_dir=str(tmp_path), **changes)
    assert ranged.requests == staged.requests
    assert np.array_equal(ranged.pixels, staged.pixels)


def test_a_slide_only_openslide_reads_gives_openslides_pixels(snapshot: Snapshot, tmp_path: Path) -> None:
    from dataclasses import replace

    from tests.support.patches import paper_snapshot

    rows = [replace(row, header=replace(row.header, access="local")) for row in snapshot.rows]
    local = paper_snapshot(tmp_path / "index", rows, snapshot.slides_uri)
    batch = read(local, 12, mpp=(0.25,), stage_dir=str(tmp_path / "stage"))
    for pixels, request in zip(batch.pixels, batch.requests, strict=True):
        assert np.array_equal(pixels, from_openslide(local, request))


def test_prefetch_threads_cache_and_cut_do_not_change_the_patches(snapshot: Snapshot) -> None:
    config = PatchesConfig(patch_px=96, mpp=(0.25, 0.5), tile_cache_bytes=0, prefetch_batches=1)
    wanted = [(3, range(20)), (3, range(20, 21)), (4, []), (5, [7, 2, 7])]
    with PatchStream(Sampler(snapshot, config, seed=1), RunLog("test"), num_threads=1) as stream:
        alone = list(stream.batches(wanted))
    roomy = config.model_copy(update={"tile_cache_bytes": 2**28, "prefetch_batches": 5})
    with PatchStream(Sampler(snapshot, roomy, seed=1), RunLog("test"), num_threads=4) as stream:
        together = list(stream.batches([(3, range(21)), (5, [2, 7])]))
    assert [len(batch.pixels) for batch in alone] == [20, 1, 0, 3]
    assert np.array_equal(np.concatenate([batch.pixels for batch in alone[:2]]), together[0].pixels)
    assert np.array_equal(alone[3].pixels, together[1].pixels[[1, 0, 1]])


@pytest.mark.parametrize(("library", "decoder"), [("nvidia.nvimgcodec", "nvimgcodec"), ("cucim", "cucim")])
@pytest.mark.parametrize("mpp", [0.25, 1.0])
def test_the_other_decoders_show_the_same_pixels(
    snapshot: Snapshot, tmp_path: Path, library: str, decoder: str, mpp: float
) -> None:
    pytest.importorskip(library)
    changes = {"mpp": (mpp,), "reader": "stage", "stage_dir": str(tmp_path)}
    other, cpu = (read(snapshot, decoder=name, **changes) for name in (decoder, "cpu"))
    assert other.requests == cpu.requests
    assert len({request.slide for request in cpu.requests}) == 3
    assert np.abs(other.pixels.astype(int) - cpu.pixels).max() <= 1


def test_cucim_without_staging_is_refused(snapshot: Snapshot) -> None:
    with pytest.raises(UserError, match="local files"):
        read(snapshot, decoder="cucim")


@pytest.mark.parametrize(("module", "decoder"), [("nvidia", "nvimgcodec"), ("cucim", "cucim")])
def test_an_absent_library_is_named_with_its_cure(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, decoder: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency) as raised:
        read(snapshot, decoder=decoder, reader="stage", stage_dir=str(tmp_path))
    assert raised.value.hint == install_command("gpu")
