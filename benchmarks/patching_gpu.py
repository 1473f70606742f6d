"""Patches a second, decoded and on the GPU, against cuCIM on all CPU cores and what ViT-S/16 training eats.

    python benchmarks/patching_gpu.py [SLIDES] [--seconds 20] [--threads N]

SLIDES is a folder of SVS or tiled TIFF; without it four synthetic slides are written. Each way reads the
same draws of 256 px at 0.25, 0.5 and 1 mpp from slides staged on the local disk, and is warmed up first.
Prints one JSON line a way: patches a second, and the ratio to cuCIM on all cores. The last line is how many
patches a second one GPU trains on with the recipe `vits16-dino` at full batch, data ready on the device.
Ends with exit code 0 and a line that says so where there is no GPU. Not run on a GPU yet.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from material import index_slides, write_slides

from eosin.config import RunConfig, load_config
from eosin.config.patches import PatchesConfig
from eosin.index.snapshot import Snapshot
from eosin.observability import RunLog
from eosin.patches.augment import MultiCrop
from eosin.patches.request import PatchBatch
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.stream import PatchStream
from eosin.recipes import load_recipe

BATCH = 256
WAYS = (("cpu", None), ("nvimgcodec", None), ("cucim", "cuda"), ("nvimgcodec", "cuda"))
WARM_UP_BATCHES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("slides", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no NVIDIA GPU: nothing to measure")
        return
    with tempfile.TemporaryDirectory(prefix="eosin-benchmark-") as folder:
        slides = arguments.slides or write_slides(Path(folder, "slides"), 4, 8192)
        snapshot = index_slides(str(slides), str(Path(folder, "index")))
        stage = str(Path(folder, "stage"))
        peer = measure(snapshot, stage, "cucim", None, arguments)
        report("cuCIM on all cores, pixels on the host", peer, peer)
        for decoder, device in (
            ("cpu", None),
            ("nvimgcodec", None),
            ("cucim", "cuda"),
            ("nvimgcodec", "cuda"),
        ):
            rate = measure(snapshot, stage, decoder, device, arguments)
            report(f"{decoder}, pixels on the {'GPU' if device else 'host'}", rate, peer)
    report("one GPU trains vits16-dino on", training_rate(arguments.seconds), peer)


def report(way: str, rate: float, peer: float) -> None:
    device = torch.cuda.get_device_name()
    line = {"way": way, "patches_per_s": round(rate, 1), "ratio": round(rate / peer, 2), "device": device}
    print(json.dumps(line), flush=True)


def measure(
    snapshot: Snapshot, stage: str, decoder: str, device: str | None, arguments: argparse.Namespace
) -> float:
    """Patches a second until the clock runs out; those on the host are copied to the GPU as training does."""
    config = PatchesConfig.model_validate(
        {"patch_px": 256, "mpp": (0.25, 0.5, 1.0), "decoder": decoder, "reader": "stage",
         "stage_dir": stage, "tile_cache_bytes": 0}
    )  # fmt: skip
    # On the GPU a few processes feed it; each has a context of its own.
    threads = 4 if device else arguments.threads
    sampler = Sampler(snapshot, config, seed=0)
    with PatchStream(sampler, RunLog("benchmark"), num_threads=threads, device=device) as stream:
        batches = stream.batches((step, range(BATCH)) for step in range(1_000_000))
        return rate_of(batches, arguments.seconds)


def rate_of(batches: Iterator[PatchBatch], seconds: float) -> float:
    for _ in range(WARM_UP_BATCHES):
        on_gpu(next(batches))
    torch.cuda.synchronize()
    started_s, num_batches = time.monotonic(), 0
    while time.monotonic() - started_s < seconds:
        on_gpu(next(batches))
        num_batches += 1
    torch.cuda.synchronize()
    return num_batches * BATCH / (time.monotonic() - started_s)


def on_gpu(batch: PatchBatch) -> torch.Tensor:
    return torch.as_tensor(batch.pixels).to("cuda", non_blocking=True)


def training_rate(seconds: float) -> float:
    """Patches a second of crops, forward, backward and update, the patches on the device already."""
    from eosin.models.network import build_network
    from eosin.training.engine.microbatch import MicrobatchMaker
    from eosin.training.engine.step import Learner
    from eosin.training.world import World

    text, source = load_recipe("vits16-dino")
    config: RunConfig = load_config(text, source=source)
    device = torch.device("cuda", 0)
    world = World(config.train.num_microbatches, 0, 1, config.train.deterministic, device)
    learner = Learner(config, build_network(config), world)
    backbone = learner.student.backbone
    maker = MicrobatchMaker(config, patch_size=backbone.patch_size, depth=backbone.depth, device=device)
    crops = MultiCrop(config.augment, seed=0, patch_px=config.patches.patch_px, device=device)
    size, side_px = config.train.microbatch_size, config.patches.patch_px
    pixels = torch.randint(0, 256, (size, side_px, side_px, 3), dtype=torch.uint8, device=device)

    def step(number: int) -> None:
        microbatches = {}
        for index in world.own_microbatches:
            views = crops(pixels, number, range(index * size, (index + 1) * size))
            microbatches[index] = maker.make(number, index, views.global_crops, views.local_crops)
        learner.step(number, microbatches)

    for number in range(WARM_UP_BATCHES):
        step(number)
    torch.cuda.synchronize()
    started_s, number = time.monotonic(), WARM_UP_BATCHES
    while time.monotonic() - started_s < seconds:
        step(number)
        number += 1
    torch.cuda.synchronize()
    done = (number - WARM_UP_BATCHES) * config.train.batch_size
    return done / (time.monotonic() - started_s)


if __name__ == "__main__":
    main()
