"""One synthetic slide on disk, published whole."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from eosin.demo.synthetic.config import SyntheticConfig, slide_fingerprint
from eosin.demo.synthetic.plan import SlideTruth, plan_slide
from eosin.demo.synthetic.publish import published
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
