"""Small slides of two kinds of tissue with a CSV that says which is which."""

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.support.slide_files import write_aperio

KINDS = {"pink": (215, 120, 170), "violet": (110, 80, 190)}
SIDE_PX = 512
ABMIL = {"num_epochs": 12, "batch_size": 4, "num_runs": 3, "patience_epochs": None}


def write_labelled_slides(root: Path, *, per_split: int = 3, mpp: float = 0.5) -> str:
    """`per_split` slides of each kind in train, val and test; returns the URI of their table.

    A slide is glass with a square of tissue that is larger in later slides, so that slides differ in the
    number of their patches.
    """
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, split in enumerate(("train", "val", "test")):
        for kind, color in KINDS.items():
            for n in range(per_split):
                name = f"{kind}_{split}_{n}.svs"
                write_aperio(root / name, [_pixels(color, side_px=128 + 64 * n, seed=100 * i + n)], mpp=mpp)
                rows.append({"slide": name, "label": kind, "split": split, "patient": f"{kind}{i}{n}"})
    return write_labels(root / "labels.csv", rows)


def write_labels(path: Path, rows: list[dict[str, str]]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return f"file://{path}"


def _pixels(color: tuple[int, int, int], side_px: int, seed: int) -> npt.NDArray[np.uint8]:
    drawn = np.full((SIDE_PX, SIDE_PX, 3), 243, dtype=np.int16)
    drawn[64 : 64 + side_px, 64 : 64 + side_px] = color
    noise = np.random.default_rng(seed).integers(-12, 13, drawn.shape)
    pixels: npt.NDArray[np.uint8] = np.clip(drawn + noise, 0, 255).astype(np.uint8)
    return pixels
