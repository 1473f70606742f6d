"""Resident memory of a patching worker over many patches of many slides.

    python benchmarks/patching_memory.py [--patches 100000] [--slides 1000] [--curve memory.csv]

A few small synthetic slides, linked under many names, are indexed by a process of its own; this one then
streams patches of 0.25 and 0.5 mpp from all of them. Prints a line every twentieth of the way, and one JSON
line: resident memory after a tenth of the patches, its peak since, and at the end.
"""

import argparse
import csv
import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from material import BATCH, index_slides, load, resident_mib, sampler_of, write_slides

from eosin.index.snapshot import open_snapshot
from eosin.observability import RunLog
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.stream import PatchStream

_DRAWN = 8
_POINTS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--patches", type=int, default=100_000)
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--curve", type=Path, help="also write the curve here, as CSV")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="eosin-benchmark-") as name:
        slides, index = Path(name, "slides"), Path(name, "index")
        link_slides(write_slides(Path(name, "drawn"), _DRAWN, 2048), slides, arguments.slides)
        indexing = multiprocessing.get_context("spawn").Process(
            target=index_slides, args=(str(slides), str(index))
        )
        indexing.start()
        indexing.join()
        curve = list(measure(sampler_of(open_snapshot(str(index)), 0.25, 0.5), arguments.patches))
    if arguments.curve:
        with arguments.curve.open("w", newline="") as file:
            csv.writer(file).writerows([("patches", "resident_mib"), *curve])
    print(json.dumps(summary(curve, arguments.slides)))


def link_slides(drawn: Path, folder: Path, num: int) -> None:
    folder.mkdir()
    found = sorted(drawn.iterdir())
    for number in range(num):
        os.link(found[number % len(found)], folder / f"{number:05d}.svs")


def measure(sampler: Sampler, num_patches: int) -> Iterator[tuple[int, float]]:
    """(patches read, resident MiB) at even distances."""
    num_steps = max(_POINTS, num_patches // BATCH)
    with PatchStream(sampler, RunLog("benchmark")) as patches:
        batches = patches.batches((step, range(BATCH)) for step in range(num_steps))
        for step, _ in enumerate(batches, 1):
            if step % (num_steps // _POINTS) == 0:
                print(f"{step * BATCH:>9,} patches  {resident_mib():7.1f} MiB", flush=True)
                yield step * BATCH, resident_mib()


def summary(curve: list[tuple[int, float]], num_slides: int) -> dict[str, object]:
    settled = [mib for _, mib in curve[len(curve) // 10 :]]
    return {
        "patches": curve[-1][0],
        "slides": num_slides,
        "resident_mib_after_a_tenth": settled[0],
        "resident_mib_peak": max(settled),
        "resident_mib_end": settled[-1],
        "load": load(),
    }


if __name__ == "__main__":
    main()
