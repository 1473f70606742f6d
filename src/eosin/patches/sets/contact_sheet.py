"""A page of patches, each with the slide and position it came from, for a person to judge."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import PurePosixPath

from PIL import Image, ImageDraw, ImageFont

from eosin.records.patchset_shard import PatchRow

_CELL_PX = 128
_MARGIN_PX = 6
_LINE_PX = 12
_FONT_PX = 10
_INK = (60, 60, 60)
_JPEG_QUALITY = 88


def contact_sheet(rows: Sequence[PatchRow], columns: int = 8, cell_px: int = _CELL_PX) -> bytes:
    """JPEG of `rows`, left to right and top to bottom, each `cell_px` wide over its caption.

    The caption says slide, level-0 position, mpp, share of tissue and, where known, the label.
    """
    step_x, step_y = cell_px + _MARGIN_PX, cell_px + 2 * _LINE_PX + _MARGIN_PX
    lines = max(1, -(-len(rows) // columns))
    sheet = Image.new("RGB", (columns * step_x + _MARGIN_PX, lines * step_y + _MARGIN_PX), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_PX)
    for place, row in enumerate(rows):
        x, y = _MARGIN_PX + place % columns * step_x, _MARGIN_PX + place // columns * step_y
        sheet.paste(_thumbnail(row, cell_px), (x, y))
        for number, text in enumerate(caption(row)):
            short = _shortened(text, font, cell_px)
            draw.text((x, y + cell_px + number * _LINE_PX), short, fill=_INK, font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def caption(row: PatchRow) -> tuple[str, str]:
    """Two lines: which slide (and label); where, at which mpp, how much tissue."""
    name = PurePosixPath(row.slide).name
    first = f"{row.label}: {name}" if row.label else name
    return first, f"{row.x_px},{row.y_px} · {row.mpp:g} mpp · {row.foreground:.0%}"


def _thumbnail(row: PatchRow, cell_px: int) -> Image.Image:
    image = Image.open(io.BytesIO(row.image)).convert("RGB")
    return image.resize((cell_px, cell_px), Image.Resampling.LANCZOS)


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> str:
    """`text` with its middle left out until it fits."""
    if font.getlength(text) <= width_px:
        return text
    half = len(text) // 2
    while half > 1 and font.getlength(f"{text[:half]}…{text[-half:]}") > width_px:
        half -= 1
    return f"{text[:half]}…{text[-half:]}"
