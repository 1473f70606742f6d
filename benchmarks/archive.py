"""What work on an index costs as the archive grows: listing and overrides, merge, inspect, sheet, one slide.

    python benchmarks/archive.py [--slides 10000 100000 1000000] [--parts plan merge …]

A listing of so many slides that are nowhere, a CSV with a line a slide, and scanned shards of rows of four
levels and a small mask. Each part is a process of its own; prints one JSON line each: wall and CPU seconds,
and MiB of its own memory at its peak, above that of the imports (`own_mib`: without pages of mapped files).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from material import load

PARTS = ("plan", "shard", "write", "merge", "inspect", "find", "sheet")
_NUM_SHARDS = 16
_PART = """
import json, resource, sys, threading, time
from pathlib import Path
import numpy as np
import eosin.index.publish as publish, eosin.index.sources as sources
from eosin.config import load_config
from eosin.index.contours import write_contours
from eosin.index.inspect import inspect_index
from eosin.index.listing import in_shard
from eosin.index.plan import open_scan, plan_scan
from eosin.index.read_slide import with_override
from eosin.index.rows import SlideRow, encode_rows
from eosin.index.scan import ScanShard
from eosin.index.sheet import write_sheet
from eosin.index.tissue_mask import TissueMask
from eosin.layout import IndexLayout
from eosin.observability import RunLog
from eosin.slides.model import Level, SlideHeader, SlideObject
from eosin.storage import ObjectInfo, open_store

part, num_slides, folder, num_shards = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
index_uri, csv = folder + "/index", Path(folder, "overrides.csv")

class Archive:
    uri = "s3://archive/slides"
    def list(self, prefix=""):
        for i in range(num_slides):
            yield ObjectInfo(f"cohort-{i % 20:02d}/slide-{i:07d}.svs", 1_000_000_000, f"etag{i}", 0.0)

def opened(uri, access=None):
    return Archive() if uri == Archive.uri else open_store(uri)

sources.open_store = opened
config = load_config("", overrides=[f"slides.uri={Archive.uri}", f"slides.overrides={csv}",
                                    f"index.uri={index_uri}"])
scan = Path(folder, "scan")

def rows_of(units, plan):
    mask = TissueMask.from_array(np.ones((40, 50), bool), 2000.0, 2000.0)
    sizes = [(100_000 >> 2 * i, 80_000 >> 2 * i, 4.0 ** i) for i in range(4)]
    for unit in units:
        each = unit.objects[0]
        levels = tuple(Level(w, h, d, 240, 240, "jpeg", "ycbcr", i, bytes(580)) for i, (w, h, d) in enumerate(sizes))
        header = SlideHeader((SlideObject(each.key, each.etag, each.size_bytes),), "aperio", "svs", levels, 0.25, 0.25)
        bad = hash(each.key) % 50 == 0
        row = SlideRow(each.key, "", "", header, "header", None if bad else mask, 0.0 if bad else 500.0,
                       digest=each.etag, reuse_digest=each.etag, read_status="corrupt-tile" if bad else "ok",
                       read_detail="level 0, tile 7: it is no JPEG" if bad else "", has_thumbnail=not bad,
                       content=each.etag, uri=f"{Archive.uri}/{each.key}")
        yield with_override(row, plan.override(unit.objects))

def write():
    plan = plan_scan(config, scan.read_text())
    for shard in range(num_shards):
        units = [unit for unit in plan.units if in_shard(unit, shard, num_shards)]
        starts = range(0, len(units), 128)
        for number, start in enumerate(starts):
            key = IndexLayout.shard_part(plan.scan_id, shard, num_shards, number)
            plan.index.put(key, encode_rows(rows_of(units[start:start + 128], plan)))
        done = ScanShard(num_parts=len(starts), num_slides=len(units), num_ok=len(units), reasons={}, num_fleeting=0)
        plan.index.put(IndexLayout.shard_marker(plan.scan_id, shard, num_shards), done.to_json())

def merge():
    publish.disagreement = lambda *arguments: None
    publish.publish_snapshot(config, num_shards, RunLog("merge"), scan_id=scan.read_text())

def own_mib():
    text = Path("/proc/self/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) / 1024

work = {
    "plan": lambda: scan.write_text(open_scan(config)),
    "shard": lambda: plan_scan(config, scan.read_text()),
    "write": write, "merge": merge, "inspect": lambda: inspect_index(index_uri),
    "find": lambda: inspect_index(index_uri, f"slide-{num_slides // 2:07d}.svs"),
    "sheet": lambda: write_sheet(index_uri, folder + "/sheet.html"),
}
before, most, over = own_mib(), [0.0], threading.Event()
def watch():
    while not over.wait(0.05):
        most[0] = max(most[0], own_mib())
threading.Thread(target=watch, daemon=True).start()
start_s, start_cpu_s = time.perf_counter(), time.process_time()
if len(sys.argv) > 5:
    import cProfile, pstats
    with cProfile.Profile() as profile:
        work[part]()
    pstats.Stats(profile).sort_stats("tottime").print_stats(25)
else:
    work[part]()
print(json.dumps({"s": round(time.perf_counter() - start_s, 2), "cpu_s": round(time.process_time() - start_cpu_s, 2),
                  "own_mib": round(max(most[0], own_mib()) - before)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--slides", type=int, nargs="+", default=[10_000])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    for num_slides in arguments.slides:
        with tempfile.TemporaryDirectory(prefix="eosin-benchmark-") as folder:
            for part, found in measure(Path(folder), num_slides, arguments.parts):
                print(json.dumps({"slides": num_slides, "part": part, **found, "load": load()}), flush=True)


def measure(
    folder: Path, num_slides: int, parts: tuple[str, ...] = PARTS
) -> list[tuple[str, dict[str, float]]]:
    """What each part took, in order; those after the first need what it left in `folder`."""
    lines = (f"slide-{i:07d}.svs,P{i // 2:07d},{i % 7}\n" for i in range(num_slides))
    (folder / "overrides.csv").write_text("slide,patient,grade\n" + "".join(lines))
    return [(part, run_part(folder, num_slides, part)) for part in parts]


def run_part(folder: Path, num_slides: int, part: str, *profile: str) -> dict[str, float]:
    """What one part took, in a process of its own with an empty cache of rows where it merges."""
    done = subprocess.run(
        [sys.executable, "-c", _PART, part, str(num_slides), str(folder), str(_NUM_SHARDS), *profile],
        check=True, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "EOSIN_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1",
             "PYTHONHASHSEED": "0"},
    )  # fmt: skip
    if profile:
        print(done.stdout)
        return {}
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
