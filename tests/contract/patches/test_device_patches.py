"""Patches as tensors: what the GPU path does with pixels, on a CPU; tests/gpu has the same on a GPU."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from eosin.config.patches import HsvFilterConfig, PatchesConfig
from eosin.index.snapshot import Snapshot
from eosin.observability import RunLog
from eosin.patches.decoding.whole_slide import (
    CucimBatches,
    SlideRegion,
    load_cucim,
)
from eosin.patches.geometry import box_of
from eosin.patches.reading.device_reader import resize_on_device
from eosin.patches.reading.read_plan import resize
from eosin.patches.request import PatchBatch
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.stream import PatchStream
from tests.support.patches import index_slides, write_slides


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("device")
    return index_slides(write_slides(folder / "slides", 2), folder / "index")


def read(snapshot: Snapshot, device: str | None, **changes: object) -> list[PatchBatch]:
    config = PatchesConfig.model_validate({"patch_px": 64, "mpp": (0.25, 0.6), **changes})
    with PatchStream(Sampler(snapshot, config, seed=2), RunLog("test"), device=device) as stream:
        return list(stream.batches([(0, range(20)), (1, [])]))


@pytest.mark.parametrize(
    ("height", "width", "side_px"),
    [(128, 128, 64), (131, 129, 64), (300, 70, 64), (50, 45, 64), (40, 90, 64), (64, 64, 64)],
)
def test_resizing_is_that_of_the_cpu_path(height: int, width: int, side_px: int) -> None:
    noise = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    region = cv2.GaussianBlur(noise, (0, 0), 0.8)
    expected = np.empty((side_px, side_px, 3), np.uint8)
    resize(region, expected)
    found = resize_on_device(torch.from_numpy(region), side_px).numpy()
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("hsv_filter", [None, HsvFilterConfig(saturation=(40, 255), min_share=0.7)])
def test_tensors_hold_what_arrays_hold(snapshot: Snapshot, hsv_filter: HsvFilterConfig | None) -> None:
    tensors = read(snapshot, "cpu", hsv_filter=hsv_filter)
    arrays = read(snapshot, None, hsv_filter=hsv_filter)
    for ours, theirs in zip(tensors, arrays, strict=True):
        assert isinstance(ours.pixels, torch.Tensor) and ours.pixels.dtype == torch.uint8
        assert ours.requests == theirs.requests
        difference = np.abs(ours.pixels.numpy().astype(int) - theirs.pixels)
        assert difference.max(initial=0) <= 1


def test_cucims_batches_are_its_single_regions(snapshot: Snapshot) -> None:
    pytest.importorskip("cucim")
    config = PatchesConfig(patch_px=64, mpp=(0.25, 0.5, 1.0))
    sampler = Sampler(snapshot, config, seed=3)
    header = snapshot.rows[0].header
    path = Path(snapshot.slides_uri.removeprefix("file://"), snapshot.rows[0].slide)
    drawn = [request for request in sampler.draw_batch(0, range(24)) if request.slide == 0]
    regions = [SlideRegion(path, header, request, box_of(request, header, 64, 0.1)) for request in drawn]
    together = CucimBatches(load_cucim(), None).work(regions)
    apart = [CucimBatches(load_cucim(), None).work([region])[0] for region in regions]
    assert len(drawn) > 5
    for ours, theirs in zip(together, apart, strict=True):
        assert np.array_equal(ours, theirs)  # type: ignore[arg-type]
