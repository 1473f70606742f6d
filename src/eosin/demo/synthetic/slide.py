"""One synthetic slide on disk; files that appear whole or not at all."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from eosin.demo.synthetic.config import SyntheticConfig, slide_fingerprint
from eosin.demo.synthetic.plan import SlideTruth, plan_slide
from eosin.demo.synthetic.scene import Rgb, draw_slide
from eosin.demo.synthetic.tiff import Associated, read_fingerprint, write_pyramid


def write_slide(path: str | Path, *, seed: int, config: SyntheticConfig | None = None) -> SlideTruth:
    """Writes one slide to `path` and returns what is on it.

    The file appears under its name only when it is whole. One that is already there and was made
    from the same seed and config is left as it is. Raises OSError where `path` cannot be written.
    """
    path = Path(path)
    config = config or SyntheticConfig()
    truth = plan_slide(seed, config)
    fingerprint = slide_fingerprint(seed, config)
    if read_fingerprint(path) == fingerprint:
        return truth
    pixels = draw_slide(truth, config)
    with published(path) as part:
        write_pyramid(part, pixels, _associated(pixels, path.stem), config, fingerprint)
    return truth


def _associated(pixels: Rgb, name: str) -> Associated:
    """A paper label with the slide's name, and a macro view of the whole glass with the label at its left."""
    label = np.full((320, 320, 3), 250, np.uint8)
    cv2.rectangle(label, (8, 8), (311, 311), (120, 120, 120), 2)
    cv2.putText(label, name[:14], (20, 170), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (20, 20, 60), 2, cv2.LINE_AA)
    macro = np.full((320, 960, 3), 236, np.uint8)
    macro[:, :320] = label
    scale = min(280 / pixels.shape[0], 600 / pixels.shape[1])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    macro[20 : 20 + size[1], 340 : 340 + size[0]] = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return Associated(label=label, macro=macro)


_STALE_S = 600.0


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` to write to; it becomes `path` at the end, or vanishes on an error."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def publish(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all."""
    with published(path) as part:
        part.write_bytes(data)


def remove_stale_parts(folder: Path) -> None:
    """Removes what killed writers left in `folder`: parts that nobody has written to for ten minutes.

    By age, not by process: the writer may run on another machine that shares the folder.
    """
    for part in folder.glob(".*.part"):
        if time.time() - part.stat().st_mtime > _STALE_S:
            part.unlink(missing_ok=True)
