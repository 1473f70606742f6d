"""Online Patching against OpenSlide: patches per CPU second, in one run, on the same slides.

    python benchmarks/patching.py [SLIDES] [--patches 600]

SLIDES is a folder of slides that OpenSlide reads too; without it two synthetic ones are written. Both
sides draw the same patches; OpenSlide's cache is off, since random training reads never hit it, and so
is the stream's. Prints one JSON line a magnification: CPU milliseconds a patch, their ratio, resident
memory at the start and the end.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import openslide

from eosin.config import RunConfig, load_config
from eosin.config.patches import PatchesConfig
from eosin.index.scan import scan_shard
from eosin.index.snapshot import Snapshot, open_snapshot, publish_snapshot
from eosin.observability import RunLog
from eosin.patches.geometry import box_of
from eosin.patches.sampler import Sampler
from eosin.patches.stream import PatchStream
from eosin.slides.synthetic import SyntheticConfig, write_slide

PATCH_PX = 224
MPPS = (0.25, 0.5, 0.9)
BATCH = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("slides", nargs="?", type=Path)
    parser.add_argument("--patches", type=int, default=600)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="eosin-benchmark-") as folder:
        slides = arguments.slides or write_slides(Path(folder, "slides"))
        snapshot = index(slides, Path(folder, "index"))
        for mpp in MPPS:
            print(json.dumps(compare(snapshot, mpp, arguments.patches // BATCH)), flush=True)


def write_slides(folder: Path) -> Path:
    folder.mkdir()
    for seed in range(2):
        write_slide(folder / f"{seed}.svs", seed=seed, config=SyntheticConfig(width_px=8192, height_px=8192))
    return folder


def index(slides: Path, folder: Path) -> Snapshot:
    config: RunConfig = load_config("", overrides=[f"slides.uri={slides}", f"index.uri={folder}"])
    scan_shard(config, 0, 1, RunLog("index"))
    publish_snapshot(config, 1, RunLog("index"))
    return open_snapshot(str(folder))


def compare(snapshot: Snapshot, mpp: float, num_batches: int) -> dict[str, float]:
    sampler = Sampler(snapshot, PatchesConfig(patch_px=PATCH_PX, mpp=(mpp,), tile_cache_bytes=0), seed=0)
    begin_mib = resident_mib()
    ours_s = cpu_s(lambda: stream(sampler, num_batches)) / (num_batches * BATCH)
    end_mib = resident_mib()
    theirs_s = cpu_s(lambda: through_openslide(sampler, num_batches // 4 + 1)) / (
        (num_batches // 4 + 1) * BATCH
    )
    return {
        "mpp": mpp,
        "eosin_ms": round(1000 * ours_s, 3),
        "openslide_ms": round(1000 * theirs_s, 3),
        "ratio": round(theirs_s / ours_s, 2),
        "resident_mib_begin": begin_mib,
        "resident_mib_end": end_mib,
    }


def stream(sampler: Sampler, num_batches: int) -> None:
    with PatchStream(sampler, RunLog("benchmark"), num_threads=1) as patches:
        for _ in patches.batches((step, range(BATCH)) for step in range(num_batches)):
            pass


def through_openslide(sampler: Sampler, num_batches: int) -> None:
    """The same draws, read and resized the plain way."""
    slides = dict(open_slides(sampler.snapshot))
    for step in range(num_batches):
        for request in sampler.draw_batch(step, range(BATCH)):
            header = sampler.snapshot.rows[request.slide].header
            box = box_of(request, header, PATCH_PX, sampler.config.mpp_tolerance)
            corner, size = (request.x_px, request.y_px), (box.width_px, box.height_px)
            region = slides[request.slide].read_region(corner, box.level, size).convert("RGB")
            cv2.resize(np.asarray(region), (PATCH_PX, PATCH_PX), interpolation=cv2.INTER_AREA)


def open_slides(snapshot: Snapshot) -> Iterator[tuple[int, openslide.OpenSlide]]:
    for number in snapshot.usable:
        path = Path(snapshot.slides_uri.removeprefix("file://"), snapshot.rows[number].slide)
        slide = openslide.OpenSlide(str(path))
        slide.set_cache(openslide.OpenSlideCache(0))
        yield number, slide


def cpu_s(work: Callable[[], None]) -> float:
    before_s = time.process_time()
    work()
    return time.process_time() - before_s


def resident_mib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 // 2**20


if __name__ == "__main__":
    main()
