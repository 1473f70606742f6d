"""Two workers of Online Patching against one: patches a second of wall time, in one run.

    python benchmarks/patching_workers.py [--patches 600] [--rounds 5]

Workers are threads of one stream, or processes with a stream of one thread each. One and two take turns on
the same patches of level 0. Needs two free cores: the load that is printed should be well below that of
the benchmark itself.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
from material import BATCH, index_slides, load, median_ratio, sampler_of, stream_all, wall_s, write_slides

from eosin.index.snapshot import open_snapshot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--patches", type=int, default=600, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    at_first = load()
    with tempfile.TemporaryDirectory(prefix="eosin-benchmark-") as name:
        index = str(Path(name, "index"))
        index_slides(str(write_slides(Path(name, "slides"), 2, 8192)), index)
        num_steps = max(2, arguments.patches // BATCH)
        for kind in (threads, processes):
            one_s, two_s = kind(index, num_steps, arguments.rounds)
            a_patch = 1 / (num_steps * BATCH)
            figures = {
                "workers": kind.__name__,
                "one_patches_per_s": round(1 / (a_patch * statistics.median(one_s))),
                "two_patches_per_s": round(1 / (a_patch * statistics.median(two_s))),
                "ratio": median_ratio(one_s, two_s),
                "load_before": at_first,
                "load": load(),
            }
            print(json.dumps(figures), flush=True)


def threads(index: str, num_steps: int, num_rounds: int) -> tuple[list[float], list[float]]:
    sampler = sampler_of(open_snapshot(index), 0.25)
    one_s, two_s = [], []
    for number in range(num_rounds):
        steps = range(number * num_steps, (number + 1) * num_steps)
        one_s.append(wall_s(partial(stream_all, sampler, steps, num_threads=1)))
        two_s.append(wall_s(partial(stream_all, sampler, steps, num_threads=2)))
    return one_s, two_s


def processes(index: str, num_steps: int, num_rounds: int) -> tuple[list[float], list[float]]:
    one_s, two_s = [], []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(read_steps, [index] * 8, [range(1)] * 8))  # both have imported and opened
        for number in range(num_rounds):
            steps = range(number * num_steps, (number + 1) * num_steps)
            halves = [steps[::2], steps[1::2]]
            one_s.append(wall_s(partial(read_all, pool, index, [steps])))
            two_s.append(wall_s(partial(read_all, pool, index, halves)))
    return one_s, two_s


def read_all(pool: ProcessPoolExecutor, index: str, parts: Sequence[range]) -> None:
    list(pool.map(read_steps, [index] * len(parts), parts))


def read_steps(index: str, steps: range) -> None:
    cv2.setNumThreads(1)
    stream_all(sampler_of(open_snapshot(index), 0.25), steps, num_threads=1)


if __name__ == "__main__":
    main()
