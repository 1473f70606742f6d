"""Damaged and hostile slides: always a header or a reason; never a crash, a hang or a flood of memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.slide_fuzz import REASONS, WRITERS, intact, mutated, verdict

NAMES = tuple(WRITERS)
_NUM_MUTATIONS = 1_000_000
_STATE = Path("build/slide-fuzz")


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_slide_has_a_reason(name: str) -> None:
    for number in range(150):
        assert verdict(name, mutated(name, number)) in REASONS | {"ok"}


@pytest.mark.long
def test_a_million_damaged_slides_have_reasons() -> None:
    """A campaign that goes on where an earlier one of the same reader ended."""
    command = [sys.executable, "-m", "tests.support.slide_fuzz", "--mutations", str(_NUM_MUTATIONS)]
    done = subprocess.run([*command, "--state", str(_STATE)], text=True, stdout=subprocess.PIPE, check=False)
    *_, last = (line for line in done.stdout.splitlines() if "mutations: {" in line)
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(last.split()[0].replace(",", "")) >= _NUM_MUTATIONS


def test_a_campaign_counts_goes_on_and_names_what_it_dies_of(tmp_path: Path) -> None:
    script = (
        "import os, sys, tests.support.slide_fuzz as fuzz; from pathlib import Path\n"
        "fuzz._CHUNK, fuzz.WRITERS = 20, {'big.tif': fuzz.WRITERS['big.tif']}\n"
        "real = fuzz.verdict\n"
        "def fake(name, data):\n"
        "    if sys.argv[2] and data == fuzz.mutated(name, 33): os.abort()\n"
        "    return real(name, data)\n"
        "fuzz.verdict = fake\n"
        "counts, faults = fuzz.campaign(60, Path(sys.argv[1]), 2)\n"
        "print(sum(counts.values()), faults)\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script, tmp_path, dies], text=True, capture_output=True, check=True
        )
        for dies in ("yes", "")
    ]
    assert "40 ['big.tif mutation 33: exit status -6']" in outputs[0].stdout
    assert "60 []" in outputs[1].stdout and outputs[1].stdout.count("a second") == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_slide_has_a_reason(name: str, share: float) -> None:
    data = intact(name)
    assert verdict(name, data[: int(share * len(data))]) in REASONS | (
        {"ok"} if name == "dual.dcm" else set()
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_intact_slide_is_ok(name: str) -> None:
    assert verdict(name, intact(name)) == "ok"
