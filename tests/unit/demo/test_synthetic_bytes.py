"""Same seed, same bytes: twice, in another process, with another number of threads."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from eosin.demo.synthetic import SyntheticConfig, write_slide
from eosin.demo.synthetic.config import derived_seed, slide_fingerprint
from eosin.demo.synthetic.tiff import read_fingerprint
from eosin.errors import UserError

SMALL = SyntheticConfig(width_px=700, height_px=520, pen_marks=1, blurred_areas=1)
SCRIPT = """
import sys
from eosin.demo.synthetic import SyntheticConfig, write_slide
write_slide(sys.argv[1], seed=4711, config=SyntheticConfig(
    width_px=700, height_px=520, pen_marks=1, blurred_areas=1, compression=sys.argv[2]))
"""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def made(path: Path, seed: int, config: SyntheticConfig = SMALL) -> str:
    write_slide(path, seed=seed, config=config)
    return sha256(path)


def test_twice_in_one_process(tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    assert made(tmp_path / "a.svs", 4711) == made(folder / "a.svs", 4711)


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000-rgb", "deflate"])
def test_in_two_processes(tmp_path: Path, compression: str) -> None:
    digests = set()
    for name in ("one", "two"):
        path = tmp_path / name / "a.svs"
        path.parent.mkdir()
        subprocess.run([sys.executable, "-c", SCRIPT, str(path), compression], check=True, timeout=60)
        digests.add(sha256(path))
    assert len(digests) == 1


def test_whatever_the_number_of_threads(tmp_path: Path) -> None:
    before = cv2.getNumThreads()
    digests = set()
    try:
        for threads in (1, 3):
            cv2.setNumThreads(threads)
            (tmp_path / str(threads)).mkdir()
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
    assert read_fingerprint(path) == slide_fingerprint(2, SMALL)


@pytest.mark.parametrize("content", [b"", b"II*\0", b"\x89PNG\r\n\x1a\n" + bytes(64)])
def test_a_file_that_is_no_slide_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(content)
    made(path, 1)
    assert read_fingerprint(path) == slide_fingerprint(1, SMALL)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(path: Path, *_: object) -> None:
        path.write_bytes(b"half a slide")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eosin.demo.synthetic.slide.write_pyramid", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_slide(tmp_path / "a.svs", seed=1, config=SMALL)
    assert list(tmp_path.iterdir()) == []


def test_seeds_of_different_streams_and_members_differ() -> None:
    seeds = {derived_seed(seed, stream, i) for seed in (0, 1) for stream in ("slide", "x") for i in range(50)}
    assert len(seeds) == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"width_px": 20},
        {"width_px": 40_000, "height_px": 40_000},
        {"classes": ("dense-small-round", "nonsense")},
        {"classes": ()},
        {"compression": "webp"},
        {"layout": "zeiss"},
        {"downsamples": (4, 16)},
        {"downsamples": (1, 16, 4)},
        {"tile_px": 250},
        {"quality": 0},
        {"mpp": 0.0},
        {"num_slides": -1},
        {"labelled_patients": 2},
        {"labelled_mpp": 0.1},
        {"pen_marks": 1.5},
    ],
)
def test_an_impossible_config_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UserError):
        SyntheticConfig(**changes)  # type: ignore[arg-type]
