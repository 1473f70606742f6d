"""Online Patching against OpenSlide: patches per CPU second, in one run, on the same slides.

    python benchmarks/patching.py [SLIDES] [--patches 300] [--rounds 5]

SLIDES is a folder of slides that OpenSlide reads too; without it two synthetic ones are written. Both
sides draw the same patches, in turns, on one thread; OpenSlide's cache is off, since random training
reads never hit it. Prints one JSON line a magnification: CPU milliseconds a patch and their ratio
(medians), and at how many of the patches the pixels are OpenSlide's.
"""

import argparse
import json
import statistics
import tempfile
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import openslide
from material import (
    BATCH,
    PATCH_PX,
    cpu_s,
    index_slides,
    load,
    median_ratio,
    sampler_of,
    stream_all,
    write_slides,
)

from eosin.index.snapshot import Snapshot
from eosin.observability import RunLog
from eosin.patches.geometry import box_of
from eosin.patches.request import PatchRequest
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.stream import PatchStream
from eosin.slides.decode import decodes_parts

MPPS = (0.25, 0.5, 0.9)
_COMPARED = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("slides", nargs="?", type=Path)
    parser.add_argument("--patches", type=int, default=300, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="eosin-benchmark-") as folder:
        slides = arguments.slides or write_slides(Path(folder, "slides"), 2, 8192)
        snapshot = index_slides(str(slides), str(Path(folder, "index")))
        for mpp in MPPS:
            print(json.dumps(compare(snapshot, mpp, arguments)), flush=True)


def compare(snapshot: Snapshot, mpp: float, arguments: argparse.Namespace) -> dict[str, object]:
    sampler, slides = sampler_of(snapshot, mpp), dict(open_slides(snapshot))
    num_steps = max(1, arguments.patches // BATCH)
    ours, theirs = [], []
    for number in range(arguments.rounds):
        steps = range(number * num_steps, (number + 1) * num_steps)
        ours.append(cpu_s(partial(stream_all, sampler, steps, num_threads=1)))
        theirs.append(cpu_s(partial(drain, sampler, slides, steps)))
    a_patch = 1000 / (num_steps * BATCH)
    return {
        "mpp": mpp,
        "eosin_ms": round(a_patch * statistics.median(ours), 3),
        "openslide_ms": round(a_patch * statistics.median(theirs), 3),
        "ratio": median_ratio(theirs, ours),
        "same_pixels": f"{same_pixels(sampler, slides)} of {_COMPARED}",
        "decodes_parts": decodes_parts(),
        "load": load(),
    }


def drain(sampler: Sampler, slides: dict[int, openslide.OpenSlide], steps: range) -> None:
    deque(through_openslide(sampler, slides, steps), 0)


def through_openslide(
    sampler: Sampler, slides: dict[int, openslide.OpenSlide], steps: range
) -> Iterator[npt.NDArray[np.uint8]]:
    """The same draws, read and resized the plain way."""
    for step in steps:
        for request in sampler.draw_batch(step, range(BATCH)):
            yield read(sampler, slides, request)


def read(
    sampler: Sampler, slides: dict[int, openslide.OpenSlide], request: PatchRequest
) -> npt.NDArray[np.uint8]:
    header = sampler.snapshot.rows[request.slide].header
    box = box_of(request, header, PATCH_PX, sampler.config.mpp_tolerance)
    corner, size = (request.x_px, request.y_px), (box.width_px, box.height_px)
    region = np.asarray(slides[request.slide].read_region(corner, box.level, size).convert("RGB"))
    if size == (PATCH_PX, PATCH_PX):
        return region
    patch: npt.NDArray[np.uint8] = cv2.resize(region, (PATCH_PX, PATCH_PX), interpolation=cv2.INTER_AREA)
    return patch


def same_pixels(sampler: Sampler, slides: dict[int, openslide.OpenSlide]) -> int:
    """Of the first patches, how many are OpenSlide's to the bit; a scaled decode is another average."""
    with PatchStream(sampler, RunLog("benchmark")) as patches:
        (batch,) = patches.batches([(0, range(_COMPARED))])
    return sum(
        np.array_equal(pixels, read(sampler, slides, request))
        for pixels, request in zip(batch.pixels, batch.requests, strict=True)
    )


def open_slides(snapshot: Snapshot) -> Iterator[tuple[int, openslide.OpenSlide]]:
    for number in snapshot.usable:
        path = Path(snapshot.slides_uri.removeprefix("file://"), snapshot.rows[number].slide)
        slide = openslide.OpenSlide(str(path))
        slide.set_cache(openslide.OpenSlideCache(0))
        yield number, slide


if __name__ == "__main__":
    main()
