"""Thumbnails of slides: published by the index, shown with the outline of the tissue mask."""

from __future__ import annotations

import io

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from eosin.errors import PermanentError
from eosin.index.rows import SlideRow
from eosin.index.snapshot import Snapshot
from eosin.index.tissue_mask import TissueMask
from eosin.layout import IndexLayout
from eosin.storage import NotFound

Pixels = npt.NDArray[np.uint8]
_OUTLINE = (0, 170, 60)


def load_thumbnail(snapshot: Snapshot, row: SlideRow, side_px: int, quality: int = 80) -> bytes | None:
    """JPEG of at most `side_px` a side (512 are published), the border of the mask drawn in.

    None where the slide has none, or the stored picture or mask is gone or damaged: a report does without.
    """
    if not row.has_thumbnail:
        return None
    try:
        data = snapshot.store.get(IndexLayout.thumbnail(row.digest))
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as stored:
            picture = stored.convert("RGB")
        picture.thumbnail((side_px, side_px))
        outlined = _outlined(np.array(picture), row.tissue)
    except (NotFound, OSError, PermanentError):
        return None
    return bytes(simplejpeg.encode_jpeg(outlined, quality=quality, colorsubsampling="420"))


def _outlined(pixels: Pixels, tissue: TissueMask | None) -> Pixels:
    """The picture with the border of the mask drawn over it, two pixels wide."""
    if tissue is None:
        return pixels
    height, width = pixels.shape[:2]
    mask = cv2.resize(tissue.array.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    inside = np.pad(mask.astype(bool), 1)
    middle = inside[1:-1, 1:-1]
    neighbours = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    edge = np.pad(middle & ~neighbours, ((0, 1), (0, 1)))
    pixels[edge[:-1, :-1] | edge[1:, :-1] | edge[:-1, 1:]] = _OUTLINE
    return pixels
