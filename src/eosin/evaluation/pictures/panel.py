"""Patches beside what they show in truth and by prediction, as one picture."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from eosin.evaluation.datasets.masks import IGNORE, Classes
from eosin.evaluation.embeddings.tiles import Pixels

_CELL_PX, _GAP_PX = 180, 6
_OPACITY = 0.55
_GOLDEN = 0.618034
# Class 1, most often the only one painted, is then green: far from haematoxylin and eosin.
_FIRST_HUE = 0.712
_GREY = (128, 128, 128)

Row = tuple[Pixels, Classes, Classes]
"""Pixels [side, side, 3], true and predicted classes [side, side]."""


def class_color(index: int) -> tuple[int, int, int]:
    """Red, green, blue of a class; neighbours differ much in hue."""
    red, green, blue = colorsys.hsv_to_rgb((_FIRST_HUE + index * _GOLDEN) % 1, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def panel(rows: Sequence[Row], background: int | None) -> bytes:
    """JPEG with a line of patch, truth and prediction for each of `rows`; background is left bare.

    Pixels that are not judged are grey in truth and prediction.
    """
    step = _CELL_PX + _GAP_PX
    sheet = Image.new("RGB", (3 * step - _GAP_PX, len(rows) * step - _GAP_PX), "white")
    for i, (pixels, truth, predicted) in enumerate(rows):
        shown = np.where(truth == IGNORE, IGNORE, predicted).astype(np.uint8)
        cells = (pixels, _painted(pixels, truth, background), _painted(pixels, shown, background))
        for j, cell in enumerate(cells):
            picture = Image.fromarray(cell).resize((_CELL_PX, _CELL_PX), Image.Resampling.BILINEAR)
            sheet.paste(picture, (j * step, i * step))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _painted(pixels: Pixels, classes: Classes, background: int | None) -> Pixels:
    painted: npt.NDArray[np.float64] = pixels.astype(np.float64)
    for index in np.unique(classes).tolist():
        if index == background:
            continue
        color = np.array(_GREY if index == IGNORE else class_color(index))
        where = classes == index
        painted[where] = (1 - _OPACITY) * painted[where] + _OPACITY * color
    return np.asarray(painted.round(), dtype=np.uint8)
