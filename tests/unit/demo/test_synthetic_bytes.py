"""Same seed, same bytes: twice, in another process, with another number of threads."""

import hashlib
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from eosin.demo.synthetic import SyntheticConfig
from eosin.demo.synthetic.config import derived_seed, slide_fingerprint
from eosin.demo.synthetic.slide import read_fingerprint
from eosin.storage import open_store
from tests.support.patches import write_slide

SMALL = SyntheticConfig(width_px=700, height_px=520)
SCRIPT = """
import sys
from eosin.demo.synthetic import SyntheticConfig, publish_slide
from eosin.storage import open_store
config = SyntheticConfig(width_px=700, height_px=520)
publish_slide(open_store(sys.argv[1]), "a.svs", seed=4711, config=config)
"""


def made(path: Path, seed: int) -> str:
    return hashlib.sha256(write_slide(path, seed=seed, config=SMALL).read_bytes()).hexdigest()


def test_twice_in_one_process(tmp_path: Path) -> None:
    assert made(tmp_path / "a.svs", 4711) == made(tmp_path / "other" / "a.svs", 4711)


def test_in_another_process(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "other")], check=True, timeout=60)
    other = (tmp_path / "other" / "a.svs").read_bytes()
    assert hashlib.sha256(other).hexdigest() == made(tmp_path / "a.svs", 4711)


def test_whatever_the_number_of_threads(tmp_path: Path) -> None:
    before = cv2.getNumThreads()
    digests = set()
    try:
        for threads in (1, 3):
            cv2.setNumThreads(threads)
            digests.add(made(tmp_path / str(threads) / "a.svs", 4711))
    finally:
        cv2.setNumThreads(before)
    assert len(digests) == 1


def test_another_seed_gives_another_slide(tmp_path: Path) -> None:
    assert made(tmp_path / "a.svs", 4711) != made(tmp_path / "b.svs", 4712)


def test_a_finished_slide_is_left_alone_and_another_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    made(path, 1)
    before = path.stat().st_mtime_ns
    made(path, 1)
    assert path.stat().st_mtime_ns == before
    made(path, 2)
    assert read_fingerprint(open_store(str(tmp_path)), "a.svs") == slide_fingerprint(2, SMALL)


@pytest.mark.parametrize("content", [b"", b"II*\0", b"\x89PNG\r\n\x1a\n" + bytes(64)])
def test_a_file_that_is_no_slide_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(content)
    made(path, 1)
    assert read_fingerprint(open_store(str(tmp_path)), "a.svs") == slide_fingerprint(1, SMALL)


def test_seeds_of_different_streams_and_members_differ() -> None:
    seeds = {derived_seed(seed, stream, i) for seed in (0, 1) for stream in ("slide", "x") for i in range(50)}
    assert len(seeds) == 200
