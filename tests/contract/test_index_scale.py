"""As many slides as a large archive has: what a worker holds before its first patch, and what it reads."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from eosin.index.snapshot import open_snapshot
from eosin.layout import IndexLayout
from eosin.patches.reading.tables import TileTables
from eosin.patches.reading.tiles_needed import TileKey
from tests.support.counting import CountingStore
from tests.support.large_snapshot import write_large_snapshot, write_table

# A fifth of the masks, which are some 45 kB a slide and stay on the disk.
MIB_A_SLIDE = 0.009
# Bits of the masks drawn from last, and 512 masks while the rows are read.
PASSING_MIB = 256 + 100

_START = """
import json, sys, time
from pathlib import Path
from eosin.config.patches import PatchesConfig
from eosin.index.snapshot import open_snapshot
from eosin.patches.sampling.sampler import Sampler

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

def peak_mib():  # getrusage would count what the process was forked from
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024

open_snapshot, Sampler
begin_mib, begin_s = resident_mib(), time.perf_counter()
snapshot = open_snapshot(sys.argv[1])
opened_s = time.perf_counter() - begin_s
sampler = Sampler(snapshot, PatchesConfig(), seed=0, split="train")
start_s, start_mib = time.perf_counter() - begin_s, resident_mib()
num_drawn = sum(len(sampler.draw_batch(step, range(64))) for step in range(8))
print(json.dumps({
    "num_slides": len(snapshot.rows), "num_eligible": len(sampler.slides), "open_s": opened_s,
    "start_s": start_s, "start_mib": start_mib - begin_mib, "drawn_mib": resident_mib() - begin_mib,
    "peak_mib": peak_mib() - begin_mib, "num_drawn": num_drawn,
}))
"""


def start_sampler(folder: Path) -> dict[str, float]:
    """Open the snapshot and start a sampler in a process of its own: seconds, and MiB above the imports."""
    result = subprocess.run(
        [sys.executable, "-c", _START, str(folder)], check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(result.stdout)
    return found


def test_a_worker_starts_with_a_bounded_share_of_memory_a_slide(tmp_path: Path) -> None:
    size_bytes = write_large_snapshot(tmp_path, 1000)
    found = start_sampler(tmp_path)
    assert found["num_slides"] == 1000 and 700 < found["num_eligible"] < 900 and found["num_drawn"] == 512
    assert found["start_mib"] < MIB_A_SLIDE * 1000 + 60, f"{size_bytes / 1000:.0f} bytes a row are published"
    assert found["peak_mib"] < MIB_A_SLIDE * 1000 + 60 + PASSING_MIB


@pytest.mark.long
def test_thirty_thousand_slides_start_in_bounded_memory(tmp_path: Path) -> None:
    write_large_snapshot(tmp_path, 30_000)
    found = start_sampler(tmp_path)
    print(json.dumps(found))
    assert found["num_slides"] == 30_000 and found["start_mib"] < MIB_A_SLIDE * 30_000 + 60
    assert found["peak_mib"] < MIB_A_SLIDE * 30_000 + 60 + PASSING_MIB


def test_of_a_table_of_megabytes_only_the_level_is_read(tmp_path: Path) -> None:
    write_large_snapshot(tmp_path, 40)
    row = open_snapshot(str(tmp_path)).rows[0]
    write_table(tmp_path, row)
    snapshot = open_snapshot(str(tmp_path))
    assert [len(snapshot.load_tiles(row, level)) for level in range(4)] == [139_278, 8_820, 567, 42]
    assert int(snapshot.load_tiles(row, 1)["offset"][0]) == 4096 + 14_000 * 139_278


def test_tables_of_gigabytes_are_visited_in_bounded_memory(tmp_path: Path) -> None:
    num_slides = 1000
    write_large_snapshot(tmp_path, num_slides)
    snapshot = open_snapshot(str(tmp_path))
    write_table(tmp_path, snapshot.rows[0])
    first = tmp_path / IndexLayout.tiles(snapshot.rows[0].digest)
    for row in snapshot.rows[1:]:
        link = tmp_path / IndexLayout.tiles(row.digest)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(first)
    assert first.stat().st_size * num_slides > 2e9
    counting = CountingStore(snapshot.store)
    tables = TileTables(replace(snapshot, store=counting))
    tracemalloc.start()
    try:
        for slide in range(num_slides):
            levels = snapshot.rows[slide].header.levels
            keys = [TileKey(slide, number, level.num_tiles - 1, 1) for number, level in enumerate(levels)]
            assert [place.size_bytes for place in tables.locate(keys)] == [14_000] * 4
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The two small levels are kept, 10 kB a slide, up to 64 MiB; of the others only rows are read.
    assert peak_bytes < 40e6
    assert sum(each.length for each in counting.ranges) < 12_000 * num_slides
