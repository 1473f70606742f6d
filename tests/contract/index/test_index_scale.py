"""As many slides as a large archive has: what a worker holds before its first patch, and what it reads."""

import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from eosin.index.snapshot import open_snapshot
from eosin.layout import IndexLayout
from eosin.patches.reading.read_plan import TileKey
from eosin.patches.reading.tables import TileTables
from tests.support.counting import CountingStore
from tests.support.large_snapshot import SNAPSHOT, link_tables, write_large_snapshot, write_table
from tests.support.regions import tiles_of_level

# What the first worker of a node passes through while it makes the columns.
MIB_A_SLIDE = 0.009
# Bits of the masks drawn from last, and 512 masks while the rows are read.
PASSING_MIB = 256 + 100

# Tables of small levels, and rows of the others while they are looked up.
TABLES_MIB = 64 + 30

_START = """
import json, sys, time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from eosin.config.patches import PatchesConfig
from eosin.index.snapshot import open_snapshot
from eosin.layout import IndexLayout
from eosin.patches.reading.tables import TileTables
from eosin.patches.reading.read_plan import plan_read
from eosin.patches.sampling.sampler import Sampler
from tests.support.counting import CountingStore

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

def peak_mib():  # getrusage would count what the process was forked from
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024

def tiles_of(request):
    header = snapshot.rows[request.slide].header
    return plan_read(request, header, config.patch_px, config.mpp_tolerance).tiles

begin_mib, begin_s = resident_mib(), time.perf_counter()
snapshot = open_snapshot(sys.argv[1])
opened_s = time.perf_counter() - begin_s
config = PatchesConfig()
sampler = Sampler(snapshot, config, seed=0, split="train")
start_s, start_mib = time.perf_counter() - begin_s, resident_mib()
num_drawn = sum(len(sampler.draw_batch(step, range(64))) for step in range(8))
found = {
    "num_slides": len(snapshot.rows), "num_eligible": len(sampler.slides), "open_s": opened_s,
    "start_s": start_s, "start_mib": start_mib - begin_mib, "drawn_mib": resident_mib() - begin_mib,
    "peak_mib": peak_mib() - begin_mib, "num_drawn": num_drawn,
}
num_patches = int(sys.argv[2])
if num_patches:
    store = CountingStore(snapshot.store)
    tables = TileTables(replace(snapshot, store=store))
    slides, num_tiles, located_s, tenth_mib = set(), 0, 0.0, 0.0
    for at in range(0, num_patches, 16):
        requests = sampler.draw_batch(100, range(at, at + 16))
        slides |= {request.slide for request in requests}
        keys = list(dict.fromkeys(chain.from_iterable(map(tiles_of, requests))))
        before_s = time.process_time()
        assert all(place.size_bytes == 14_000 for place in tables.locate(keys))
        located_s += time.process_time() - before_s
        num_tiles += len(keys)
        if at <= num_patches // 10:
            tenth_mib = resident_mib() - begin_mib
    found |= {
        "num_visited": len(slides), "tiles_a_patch": num_tiles / num_patches,
        "locate_cpu_ms_a_patch": 1000 * located_s / num_patches, "tenth_mib": tenth_mib,
        "end_mib": resident_mib() - begin_mib, "visits_peak_mib": peak_mib() - begin_mib,
        "table_kib_a_patch": sum(each.length for each in store.ranges) / 1024 / num_patches,
    }
print(json.dumps(found))
"""


def start_sampler(folder: Path, num_patches: int = 0) -> dict[str, float]:
    """Open the snapshot and start a sampler in a process of its own: seconds, and MiB above the imports.

    Then the tiles of `num_patches` patches are looked up, 16 patches at a time as a stream does.
    """
    result = subprocess.run(
        [sys.executable, "-c", _START, str(folder), str(num_patches)],
        check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    found: dict[str, float] = json.loads(result.stdout)
    return found


def test_a_worker_starts_with_a_bounded_share_of_memory_a_slide(tmp_path: Path) -> None:
    size_bytes = write_large_snapshot(tmp_path, 1000)
    found = start_sampler(tmp_path)
    assert found["num_slides"] == 1000 and 700 < found["num_eligible"] < 900 and found["num_drawn"] == 512
    assert found["start_mib"] < MIB_A_SLIDE * 1000 + 60, f"{size_bytes / 1000:.0f} bytes a row are published"
    assert found["peak_mib"] < MIB_A_SLIDE * 1000 + 60 + PASSING_MIB


def test_the_next_worker_of_a_node_maps_what_the_first_one_made(tmp_path: Path) -> None:
    write_large_snapshot(tmp_path, 8000)
    first = start_sampler(tmp_path)
    (tmp_path / IndexLayout.snapshot_rows(SNAPSHOT)).unlink()
    again = start_sampler(tmp_path)
    assert again["num_eligible"] == first["num_eligible"] > 6000
    assert again["start_mib"] < 40, "nothing of it is the archive's size"


def assert_visits_bounded(found: dict[str, float]) -> None:
    assert found["visits_peak_mib"] < found["peak_mib"] + TABLES_MIB
    assert found["end_mib"] < found["tenth_mib"] + TABLES_MIB
    assert found["table_kib_a_patch"] < 30, "a patch reads rows of the tables, not the tables"


def test_tiles_of_a_thousand_slides_with_real_tables_are_found_in_bounded_memory(tmp_path: Path) -> None:
    write_large_snapshot(tmp_path, 1000)
    link_tables(tmp_path, open_snapshot(str(tmp_path)).rows)
    found = start_sampler(tmp_path, 1600)
    assert found["num_visited"] > 600 and found["tiles_a_patch"] > 2
    assert_visits_bounded(found)


@pytest.mark.long
def test_thirty_thousand_slides_start_in_bounded_memory(tmp_path: Path) -> None:
    write_large_snapshot(tmp_path, 30_000)
    num_bytes = link_tables(tmp_path, open_snapshot(str(tmp_path)).rows)
    assert num_bytes > 70e9
    found = start_sampler(tmp_path, 24_000)
    print(json.dumps(found))
    assert found["num_slides"] == 30_000 and found["start_mib"] < MIB_A_SLIDE * 30_000 + 60
    assert found["peak_mib"] < MIB_A_SLIDE * 30_000 + 60 + PASSING_MIB
    assert found["num_visited"] > 12_000
    assert_visits_bounded(found)


def test_of_a_table_of_megabytes_only_the_level_is_read(tmp_path: Path) -> None:
    write_large_snapshot(tmp_path, 40)
    row = open_snapshot(str(tmp_path)).rows[0]
    write_table(tmp_path, row)
    snapshot = open_snapshot(str(tmp_path))
    assert [len(tiles_of_level(snapshot, row, level)) for level in range(4)] == [139_278, 8_820, 567, 42]
    assert int(tiles_of_level(snapshot, row, 1)["offset"][0]) == 4096 + 14_000 * 139_278


def test_tables_of_gigabytes_are_visited_in_bounded_memory(tmp_path: Path) -> None:
    num_slides = 1000
    write_large_snapshot(tmp_path, num_slides)
    snapshot = open_snapshot(str(tmp_path))
    assert link_tables(tmp_path, snapshot.rows) > 2e9
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
