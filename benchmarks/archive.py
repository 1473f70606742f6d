"""What work on an index costs as the archive grows: listing and overrides, merge, inspect, sheet, one slide.

    python benchmarks/archive.py [--slides 10000 100000 1000000] [--parts plan shard write merge …]

A listing of so many slides that are nowhere, a CSV with a line a slide, and scanned shards of rows of four
levels and a small mask (`write` makes them and is no measure). Each part is a process of its own; prints one
JSON line each: wall and CPU seconds, and at its peak MiB of its own memory above that of the imports, without
pages of mapped files. `inspect` makes the node's columns.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from material import load

import eosin.index.publish as publish_module
import eosin.index.sources as sources_module
from eosin.config import RunConfig, load_config
from eosin.index.inspect import inspect_index
from eosin.index.listing import Unit, in_shard
from eosin.index.plan import ScanPlan, open_scan, plan_scan
from eosin.index.read_slide import with_override
from eosin.index.rows import SlideRow, encode_rows
from eosin.index.scan import ScanShard
from eosin.index.sheet import write_sheet
from eosin.index.tissue_mask import TissueMask
from eosin.layout import IndexLayout
from eosin.observability import RunLog
from eosin.slides.model import Level, SlideHeader, SlideObject
from eosin.storage import ObjectInfo, S3Access, Store, open_store
from eosin.storage.settings import ENVIRONMENT

PARTS = ("plan", "shard", "write", "merge", "inspect", "find", "sheet")
_NUM_SHARDS, _UNITS_A_PART = 16, 128
_ARCHIVE = "s3://archive/slides"


class _Archive:
    """A bucket that lists slides and holds none."""

    uri = _ARCHIVE

    def __init__(self, num_slides: int) -> None:
        self._num_slides = num_slides

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for i in range(self._num_slides):
            yield ObjectInfo(f"cohort-{i % 20:02d}/slide-{i:07d}.svs", 1_000_000_000, f"etag{i}", 0.0)


class Work:
    """The parts, each over what those before it left in `folder`."""

    def __init__(self, folder: Path, num_slides: int) -> None:
        archive = _Archive(num_slides)

        def opened(uri: str, access: S3Access = ENVIRONMENT) -> Store:
            return archive if uri == _ARCHIVE else open_store(uri, access)  # type: ignore[return-value]  # only lists

        sources_module.open_store = opened  # type: ignore[attr-defined]  # as its own import
        # No slide is there for another reader.
        publish_module.disagreement = lambda *_: None  # type: ignore[attr-defined]  # as its own import
        self._index, self._folder, self._num_slides = f"{folder}/index", folder, num_slides
        self._config: RunConfig = load_config("", overrides=[
            f"slides.uri={_ARCHIVE}", f"slides.overrides={folder}/overrides.csv", f"index.uri={self._index}",
        ])  # fmt: skip

    def plan(self) -> None:
        Path(self._folder, "scan").write_text(open_scan(self._config).scan_id)

    def shard(self) -> ScanPlan:
        return plan_scan(self._config, self._scan_id())

    def write(self) -> None:
        plan = self.shard()
        for shard in range(_NUM_SHARDS):
            units = [unit for unit in plan.units if in_shard(unit, shard, _NUM_SHARDS)]
            starts = range(0, len(units), _UNITS_A_PART)
            for number, start in enumerate(starts):
                key = IndexLayout.shard_part(plan.scan_id, shard, _NUM_SHARDS, number)
                plan.index.put(key, encode_rows(_rows(plan, units[start : start + _UNITS_A_PART])))
            done = ScanShard(num_parts=len(starts), num_slides=len(units), num_ok=len(units), reasons={},
                             num_fleeting=0)  # fmt: skip
            plan.index.put(IndexLayout.shard_marker(plan.scan_id, shard, _NUM_SHARDS), done.to_json())

    def merge(self) -> None:
        publish_module.publish_snapshot(self._config, _NUM_SHARDS, RunLog("merge"), plan=self.shard())

    def inspect(self) -> None:
        inspect_index(self._index)

    def find(self) -> None:
        inspect_index(self._index, f"slide-{self._num_slides // 2:07d}.svs")

    def sheet(self) -> None:
        write_sheet(self._index, f"{self._folder}/sheet.html")

    def _scan_id(self) -> str:
        return Path(self._folder, "scan").read_text()


def _rows(plan: ScanPlan, units: Iterable[Unit]) -> Iterator[SlideRow]:
    """Every fiftieth slide or so is damaged."""
    mask = TissueMask.from_array(np.ones((40, 50), bool), 2000.0, 2000.0)
    levels = tuple(
        Level(100_000 >> 2 * i, 80_000 >> 2 * i, 4.0**i, 240, 240, "jpeg", "ycbcr", i, bytes(580))
        for i in range(4)
    )
    for unit in units:
        each = unit.objects[0]
        stored = SlideObject(each.key, each.etag, each.size_bytes)
        header = SlideHeader((stored,), "aperio", "svs", levels, 0.25, 0.25)
        bad = int(each.etag.removeprefix("etag")) % 50 == 0
        row = SlideRow(
            each.key, "", "", header, "header", None if bad else mask, 0.0 if bad else 500.0,
            digest=each.etag, reuse_digest=each.etag, read_status="corrupt-tile" if bad else "ok",
            read_detail="level 0, tile 7: it is no JPEG" if bad else "", has_thumbnail=not bad,
            content=each.etag, uri=f"{_ARCHIVE}/{each.key}",
        )  # fmt: skip
        yield with_override(row, plan.override(unit.objects))


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Seconds, and MiB of anonymous memory at the peak, looked at every 50 ms."""
    before, most, over = _own_mib(), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            most[0] = max(most[0], _own_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    try:
        kept = work()
        found = {"s": time.perf_counter() - start_s, "cpu_s": time.process_time() - start_cpu_s}
        most[0] = max(most[0], _own_mib())
        del kept
    finally:
        over.set()
        watcher.join()
    return {**{name: round(value, 2) for name, value in found.items()}, "own_mib": round(most[0] - before)}


def _own_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def measure(
    folder: Path, num_slides: int, parts: Iterable[str] = PARTS
) -> Iterator[tuple[str, dict[str, float]]]:
    """What each part took, in order, in processes of their own."""
    lines = (f"slide-{i:07d}.svs,P{i // 2:07d},{i % 7}\n" for i in range(num_slides))
    Path(folder, "overrides.csv").write_text("slide,patient,grade\n" + "".join(lines))
    environment = {**os.environ, "EOSIN_CACHE_DIR": f"{folder}/cache", "OMP_NUM_THREADS": "1"}
    for part in parts:
        done = subprocess.run(
            [sys.executable, __file__, "--work", part, "--folder", str(folder), "--slides", str(num_slides)],
            check=True, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        yield part, json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--slides", type=int, nargs="+", default=[10_000])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--work", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(measured(getattr(Work(arguments.folder, arguments.slides[0]), arguments.work))))
        return
    for num_slides in arguments.slides:
        with tempfile.TemporaryDirectory(prefix="eosin-benchmark-") as name:
            for part, found in measure(Path(name), num_slides, arguments.parts):
                print(json.dumps({"slides": num_slides, "part": part, **found, "load": load()}), flush=True)


if __name__ == "__main__":
    main()
