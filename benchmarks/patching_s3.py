"""Online Patching from S3 against tiffslide + s3fs: patches per CPU second of the client, in one run.

    python -m venv /tmp/peer && /tmp/peer/bin/pip install tiffslide==2.5.1 s3fs==2026.9.0
    python benchmarks/patching_s3.py --peer /tmp/peer/bin/python [--patches 120] [--rounds 5]

A SeaweedFS on loopback serves slides to both; its own CPU is not counted. Both sides read the same random
224 px patches of level 0 in turns. The peer's slides are opened beforehand and it reads without look-ahead,
which is its best. Prints one JSON line: CPU milliseconds a patch of the client and their ratio (medians),
end-to-end patches a second, requests and bytes a patch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
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

from eosin.demo.server import LocalS3
from eosin.observability import RunLog
from eosin.patches.geometry import box_of
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.stream import PatchStream
from eosin.storage import open_store

_BUCKET = "s3://eosin-benchmark"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", required=True, help="a Python that has tiffslide and s3fs")
    parser.add_argument("--patches", type=int, default=120, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slides", type=int, default=64, help="so that a batch hardly meets one twice")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="eosin-benchmark-") as name:
        folder = Path(name)
        with served(folder, arguments.slides) as sampler:
            print(json.dumps(compare(sampler, arguments, folder / "peer.npy")), flush=True)


@contextmanager
def served(folder: Path, num_slides: int) -> Iterator[Sampler]:
    """A sampler of slides that lie in a bucket; the environment names its server."""
    with LocalS3(folder / "s3") as server:
        server.ensure_bucket(_BUCKET)
        os.environ.update(server.env)
        slides = open_store(f"{_BUCKET}/slides")
        for path in sorted(write_slides(folder / "slides", 2, 8192).iterdir()):
            for copy in range(num_slides // 2):
                slides.put_file(f"{copy:03d}/{path.name}", path)
        yield sampler_of(index_slides(f"{_BUCKET}/slides", f"{_BUCKET}/index"), 0.25)


def compare(sampler: Sampler, arguments: argparse.Namespace, kept: Path) -> dict[str, object]:
    num_steps = max(1, arguments.patches // BATCH)
    ours: dict[str, list[float]] = {"cpu_s": [], "wall_s": []}
    theirs: dict[str, list[float]] = {"cpu_s": [], "wall_s": []}
    stream_all(sampler, [10_000], num_threads=2)
    with peer(arguments.peer) as ask:
        ask(regions(sampler, range(10_000, 10_001)), str(kept))
        for number in range(arguments.rounds):
            steps = range(number * num_steps, (number + 1) * num_steps)
            used_s, took_s = cpu_and_wall_s(partial(stream_all, sampler, steps))
            ours["cpu_s"].append(used_s)
            ours["wall_s"].append(took_s)
            answer = ask(regions(sampler, steps), "")
            for name, values in theirs.items():
                values.append(answer[name])
    num_patches = num_steps * BATCH
    return {
        "eosin_cpu_ms": round(1000 * statistics.median(ours["cpu_s"]) / num_patches, 3),
        "tiffslide_s3fs_cpu_ms": round(1000 * statistics.median(theirs["cpu_s"]) / num_patches, 3),
        "ratio": median_ratio(theirs["cpu_s"], ours["cpu_s"]),
        "eosin_patches_per_s": round(num_patches / statistics.median(ours["wall_s"])),
        "tiffslide_s3fs_patches_per_s": round(num_patches / statistics.median(theirs["wall_s"])),
        "same_pixels": f"{same_pixels(sampler, np.load(kept))} of {BATCH}",
        "load": load(),
    }


def regions(sampler: Sampler, steps: range) -> list[dict[str, object]]:
    """What the draws of `steps` read, as the peer takes it."""
    found: list[dict[str, object]] = []
    for request in (request for step in steps for request in sampler.draw_batch(step, range(BATCH))):
        row = sampler.snapshot.rows[request.slide]
        box = box_of(request, row.header, PATCH_PX, sampler.config.mpp_tolerance)
        corner, size = (request.x_px, request.y_px), (box.width_px, box.height_px)
        uri = f"{_BUCKET}/slides/{row.slide}"
        found.append({"uri": uri, "level": box.level, "corner_px": corner, "size_px": size})
    return found


def same_pixels(sampler: Sampler, theirs: Any) -> int:
    with PatchStream(sampler, RunLog("benchmark")) as patches:
        (batch,) = patches.batches([(10_000, range(BATCH))])
    return sum(np.array_equal(a, b) for a, b in zip(batch.pixels, theirs, strict=True))


def cpu_and_wall_s(work: Callable[[], object]) -> tuple[float, float]:
    before_s = time.perf_counter()
    return cpu_s(work), time.perf_counter() - before_s


@contextmanager
def peer(python: str) -> Iterator[Any]:
    script = Path(__file__).parent / "peers" / "tiffslide_s3fs.py"
    with subprocess.Popen(
        [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        orders, answers = process.stdin, process.stdout
        assert orders is not None and answers is not None

        def ask(wanted: list[dict[str, object]], keep: str) -> dict[str, float]:
            order = {"regions": wanted, "keep": keep, "cache_type": "none"}
            orders.write(json.dumps(order) + "\n")
            orders.flush()
            answer: dict[str, float] = json.loads(answers.readline())
            return answer

        yield ask
        orders.close()


if __name__ == "__main__":
    main()
