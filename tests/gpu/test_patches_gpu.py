"""What a GPU adds to patches: decoding there by nvImageCodec and cuCIM, pixels that stay there, crops."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eosin.config.augment import AugmentConfig
from eosin.config.patches import PatchesConfig
from eosin.index.snapshot import Snapshot
from eosin.observability import RunLog
from eosin.patches.augment import MultiCrop
from eosin.patches.request import PatchBatch, on_host
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.stream import PatchStream
from tests.support import crashing
from tests.support.patches import index_slides, write_slides

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]
# Decoders and their inverse transforms round differently; so much may a grey level differ from the CPU's.
MOST_LEVELS = 3


def read(
    snapshot: Snapshot, tmp_path: Path, decoder: str, device: str | None, **changes: object
) -> PatchBatch:
    config = PatchesConfig.model_validate(
        {"patch_px": 96, "mpp": (0.25, 0.6, 1.0), "decoder": decoder, "reader": "stage",
         "stage_dir": str(tmp_path / "stage"), **changes}
    )  # fmt: skip
    with PatchStream(Sampler(snapshot, config, seed=1), RunLog("test"), device=device) as stream:
        return next(iter(stream.batches([(0, range(48))])))


def test_crops_on_the_device_are_those_of_the_cpu() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 256, 256, 3), dtype=np.uint8))
    device, cpu = (
        MultiCrop(AugmentConfig(solarize=0.2), seed=3, patch_px=256, device=name) for name in ("cuda", "cpu")
    )
    ours, theirs = device(pixels.cuda(), 7, range(16)), cpu(pixels, 7, range(16))
    assert ours.global_crops.is_cuda
    # A pixel at the solarisation threshold may fall on either side.
    for a, b in ((ours.global_crops, theirs.global_crops), (ours.local_crops, theirs.local_crops)):
        assert ((a.cpu() - b).abs() > 2e-3).float().mean() < 1e-4


@pytest.mark.parametrize("device", [None, "cuda"])
@pytest.mark.parametrize(
    "encoding",
    [{}, {"compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}}, {"compression": 33005}],
    ids=["jpeg", "jpeg-rgb", "jpeg2000-rgb"],
)
@pytest.mark.parametrize(("library", "decoder"), [("nvidia.nvimgcodec", "nvimgcodec"), ("cucim", "cucim")])
def test_patches_decoded_on_the_device_are_those_of_the_cpu(
    tmp_path: Path, library: str, decoder: str, encoding: dict[str, Any], device: str | None
) -> None:
    pytest.importorskip(library)
    slides = write_slides(tmp_path / "slides", 2, **encoding)
    snapshot = index_slides(slides, tmp_path / "index")
    ours, theirs = (
        read(snapshot, tmp_path, decoder, device),
        read(snapshot, tmp_path, "cpu", None),
    )
    assert ours.requests == theirs.requests
    assert isinstance(ours.pixels, torch.Tensor) == (device is not None)
    difference = np.abs(on_host(ours.pixels).astype(int) - theirs.pixels)
    # At a coarser mpp the CPU path scales JPEG tiles while it decodes them, by another filter.
    same_scale = np.array([request.mpp == 0.25 for request in ours.requests])
    assert difference[same_scale].max() <= MOST_LEVELS
    assert difference.mean() < 2.0


def test_a_stream_on_the_device_feeds_crops_without_the_host(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.nvimgcodec")
    snapshot = index_slides(write_slides(tmp_path / "slides", 2), tmp_path / "index")
    batch = read(snapshot, tmp_path, "nvimgcodec", "cuda")
    assert batch.pixels.is_cuda
    crop = MultiCrop(AugmentConfig(), seed=3, patch_px=96, device="cuda")
    crops = crop(batch.pixels, 0, [request.index for request in batch.requests])
    assert crops.global_crops.is_cuda and crops.global_crops.isfinite().all()


def test_a_decoder_that_dies_leaves_what_lies_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory is the parent's: batches before and after a crash hold their pixels."""
    snapshot = index_slides(write_slides(tmp_path / "slides", 2), tmp_path / "index")
    crashing.install(monkeypatch)
    config = PatchesConfig(patch_px=96, mpp=(0.25,), decoder="nvimgcodec", tile_cache_bytes=0)
    with PatchStream(Sampler(snapshot, config, seed=1), RunLog("test"), device="cuda") as stream:
        ours = list(stream.batches([(step, range(24)) for step in range(3)]))
    assert any(request.attempt for batch in ours for request in batch.requests)
    sampler = Sampler(snapshot, config.model_copy(update={"decoder": "cpu"}), seed=1)
    with PatchStream(sampler, RunLog("test")) as stream:
        plain = list(stream.batches([(step, range(24)) for step in range(3)]))
    for batch, theirs in zip(ours, plain, strict=True):
        first = [place for place, request in enumerate(batch.requests) if not request.attempt]
        difference = on_host(batch.pixels).astype(int)[first] - theirs.pixels[first]
        assert np.abs(difference).max() <= 1
