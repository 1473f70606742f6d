"""Images with masks for the tests of segmentation: blobs in a colour of their class on pale ground."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

GROUND = (235, 225, 230)
COLORS = ((90, 60, 150), (200, 90, 60))
DECODER = {
    "num_steps": 40,
    "batch_size": 8,
    "lr": 1e-2,
    "num_runs": 2,
    "hidden_dim": 16,
    "num_validations": 4,
}


def blobs(
    seed: int, *, width_px: int = 64, height_px: int = 64, num_classes: int = 2
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """An image [h, w, 3] with noise and its classes [h, w]; class 0 is ground."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height_px, :width_px]
    classes = np.zeros((height_px, width_px), dtype=np.uint8)
    for i in range(2 * num_classes):
        radius = random.uniform(9, 14)
        middle = random.uniform(0, width_px), random.uniform(0, height_px)
        classes[(x - middle[0]) ** 2 + (y - middle[1]) ** 2 < radius**2] = 1 + i % (num_classes - 1)
    palette = np.array([GROUND, *COLORS])[classes]
    return np.clip(palette + random.normal(0, 12, palette.shape), 0, 255).astype(np.uint8), classes


def write_pair(
    folder: Path, name: str, seed: int, *, binary: bool = False, num_classes: int = 2, format: str = "png"
) -> None:
    image, classes = blobs(seed, num_classes=num_classes)
    write_image(folder / "images" / f"{name}.{format}", image)
    write_image(folder / "masks" / f"{name}.png", classes * 255 if binary else classes)


def write_image(path: Path, values: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def write_masked(
    root: Path, splits: Sequence[str] = ("",), *, num: int = 6, **options: bool | int | str
) -> str:
    """`num` pairs at the root, or under each of `splits`; returns the URI."""
    for s, split in enumerate(splits):
        for i in range(num):
            write_pair(root / split, f"{i:02d}", 100 * s + i, **options)  # type: ignore[arg-type]  # one type for all
    return f"file://{root}"
