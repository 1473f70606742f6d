"""What a GPU adds to patches: crops on the device, and tiles decoded by nvImageCodec there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from eosin.config.augment import AugmentConfig
from eosin.config.patches import PatchesConfig
from eosin.observability import RunLog
from eosin.patches.augment import MultiCrop
from eosin.patches.sampler import Sampler
from eosin.patches.stream import PatchStream
from tests.support.patches import index_slides, write_slides

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]


def test_crops_on_the_device_are_those_of_the_cpu() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 256, 256, 3), dtype=np.uint8))
    device, cpu = (
        MultiCrop(AugmentConfig(solarize=0.2), seed=3, patch_px=256, device=name) for name in ("cuda", "cpu")
    )
    ours, theirs = (crop(pixels, 7, range(16)) for crop in (device, cpu))
    assert ours.global_crops.is_cuda
    # A pixel at the solarisation threshold may fall on either side.
    for a, b in ((ours.global_crops, theirs.global_crops), (ours.local_crops, theirs.local_crops)):
        assert ((a.cpu() - b).abs() > 2e-3).float().mean() < 1e-4


@pytest.mark.parametrize("compression", ["jpeg", "jpeg-rgb", "jpeg2000-rgb"])
def test_tiles_decoded_on_the_device_are_those_of_the_cpu(tmp_path: Path, compression: str) -> None:
    pytest.importorskip("nvidia.nvimgcodec")
    slides = write_slides(tmp_path / "slides", 1, compression=compression)
    snapshot = index_slides(slides, tmp_path / "index")
    batches = []
    for decoder in ("nvimgcodec", "cpu"):
        config = PatchesConfig.model_validate({"patch_px": 96, "mpp": (0.25,), "decoder": decoder})
        with PatchStream(Sampler(snapshot, config, seed=1), RunLog("test")) as stream:
            batches += list(stream.batches([(0, range(32))]))
    ours, theirs = batches
    assert ours.requests == theirs.requests
    assert np.abs(ours.pixels.astype(int) - theirs.pixels).max() <= 3
