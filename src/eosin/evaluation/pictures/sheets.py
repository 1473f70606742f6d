"""Small pictures in rows, as one JPEG of bounded size."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

MAX_BYTES = 300_000
CELL_PX = 112
_GAP_PX = 6
_QUALITIES = (88, 75, 60, 45)

Pixels = npt.NDArray[np.uint8]
Color = tuple[int, int, int]


def sheet(rows: Sequence[Sequence[Pixels]], frames: Sequence[Sequence[Color | None]] | None = None) -> bytes:
    """JPEG of cells [h, w, 3] resized to squares; `frames` gives some of them a coloured border.

    At most `MAX_BYTES`: the quality falls, then the picture shrinks, until it fits.
    """
    step = CELL_PX + _GAP_PX
    width = max(len(row) for row in rows) * step - _GAP_PX
    picture = Image.new("RGB", (width, len(rows) * step - _GAP_PX), "white")
    draw = ImageDraw.Draw(picture)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            corner = j * step, i * step
            picture.paste(Image.fromarray(cell).resize((CELL_PX, CELL_PX), Image.Resampling.BILINEAR), corner)
            color = frames[i][j] if frames else None
            if color:
                box = (*corner, corner[0] + CELL_PX - 1, corner[1] + CELL_PX - 1)
                draw.rectangle(box, outline=color, width=4)
    return _jpeg(picture)


def _jpeg(picture: Image.Image) -> bytes:
    while True:
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=quality)
            if buffer.tell() <= MAX_BYTES:
                return buffer.getvalue()
        picture = picture.resize((max(1, picture.width // 2), max(1, picture.height // 2)))
