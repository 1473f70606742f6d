"""A training worker's start over a large archive: opening the snapshot, and the sampler, till the first draw.

    python benchmarks/start.py [--slides 76300 1000000] [--workers 2]

Publishes snapshots of so many slides (four drawn masks under many names, two slides a patient) and starts
workers one after the other, each a process of its own, as the processes of one node start. Prints one JSON
line a number of slides: wall and CPU seconds and MiB of the first worker, which makes the node's columns, and
of the next. MiB are of the whole process with its imports: before, once the sampler is ready, and after 64
draws; resident, with pages that processes share divided among them (shared_out, the kernel's PSS), and of the
process alone (own).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from material import load

_WORKER = """
import json, sys, time
from eosin.config.patches import PatchesConfig
from eosin.index.snapshot import open_snapshot
from eosin.patches.sampling.sampler import Sampler
def memory():
    lines = open("/proc/self/smaps_rollup").read().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
    return {"resident": sizes["Rss"], "shared_out": sizes["Pss"], "own": sizes["Anonymous"]}
found, start_s, start_cpu_s = {"imports": memory()}, time.perf_counter(), time.process_time()
snapshot = open_snapshot(sys.argv[1])
sampler = Sampler(snapshot, PatchesConfig(), seed=1, split="train")
found["ready"] = memory()
sampler.draw_batch(0, range(64))
seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
found["drawn"] = memory()
print(json.dumps({"s": round(seconds, 2), "cpu_s": round(cpu_s, 2), "slides": len(sampler.slides), "mib": {
    when: {name: round(mib) for name, mib in sizes.items()} for when, sizes in found.items()}}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--slides", type=int, nargs="+", default=[76_300])
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    for num_slides in arguments.slides:
        print(json.dumps(measure(num_slides, arguments.workers)), flush=True)


def measure(num_slides: int, num_workers: int) -> dict[str, object]:
    """Starts of `num_workers` workers of a node, the first on an empty cache."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.support.large_snapshot import write_large_snapshot

    with tempfile.TemporaryDirectory(prefix="eosin-benchmark-") as name:
        num_bytes = write_large_snapshot(Path(name, "index"), num_slides)
        workers = [start_worker(Path(name)) for _ in range(num_workers)]
        cache = sum(each.stat().st_blocks * 512 for each in Path(name, "cache").rglob("*") if each.is_file())
    return {"slides": num_slides, "rows_mib": round(num_bytes / 2**20), "cache_mib": round(cache / 2**20),
            "first": workers[0], "next": workers[-1], "load": load()}  # fmt: skip


def start_worker(folder: Path) -> dict[str, object]:
    """What one process says of its start."""
    started_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _WORKER, str(folder / "index")], check=True, capture_output=True, text=True,
        env={**os.environ, "EOSIN_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found: dict[str, object] = json.loads(done.stdout)
    return {**found, "with_imports_s": round(time.perf_counter() - started_s, 2)}


if __name__ == "__main__":
    main()
