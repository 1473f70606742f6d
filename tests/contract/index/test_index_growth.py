"""Work on an index of ten times the slides takes some ten times the time, and memory that a machine has."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "archive.py"
# MiB a million slides may take, of the process alone; below 100,000 what does not grow outweighs the rest.
MOST_MIB = {"plan": 2500, "shard": 2500, "merge": 3500, "inspect": 1000, "find": 400, "sheet": 400}
SMALL, LARGE = 10_000, 100_000


def test_ten_times_the_slides_are_ten_times_the_work() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--slides", str(SMALL), str(LARGE)],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    found = {(line["part"], line["slides"]): line for line in map(json.loads, done.stdout.splitlines())}
    print(done.stdout)
    assert len(found) == 2 * (len(MOST_MIB) + 1)
    for part, most_mib in MOST_MIB.items():
        small, large = found[part, SMALL], found[part, LARGE]
        assert large["cpu_s"] < 15 * (small["cpu_s"] + 0.1), part
        assert large["own_mib"] < 100 + most_mib * LARGE / 1_000_000, part
