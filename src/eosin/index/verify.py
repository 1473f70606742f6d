"""The guard against misread formats: one slide of each kind, held against what an independent reader shows.

A reader that places tiles wrongly does so for all slides of a scanner and a layout, and says nothing. So of
each vendor and layout the smallest usable slide is staged whole, and OpenSlide's picture of it (wsidicom's,
for DICOM) is compared with the one that was made from the level that will be read.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from eosin.errors import EosinError
from eosin.index.rows import OK, SlideRow
from eosin.layout import IndexLayout
from eosin.slides.decode import over_white
from eosin.slides.staging import staged
from eosin.storage import NotFound, ObjectChanged, Store

Pixels = npt.NDArray[np.uint8]
_SIDE_PX = 96
# A larger slide is not worth its transfer: kinds of which all are larger stay unchecked, as `inspect` says.
_LARGEST_BYTES = 2**30
# Mean difference of two pictures of at most 96 px, in grey levels and as a share of the picture's contrast.
# Readers that agreed were 1 to 10 levels apart, at most a fifth of the contrast (ten slides, six layouts).
_MOST_DIFFERENCE, _MOST_SHARE_OF_CONTRAST = 6.0, 0.35
_MOST_ASPECT = 0.05


def chosen_to_verify(rows: Iterable[SlideRow]) -> list[SlideRow]:
    """The smallest usable slide of each vendor and layout whose tiles eosin places, in order of slides."""
    smallest: dict[tuple[object, ...], SlideRow] = {}
    for row in rows:
        if row.status == OK and row.header.access == "tiles":
            known = smallest.setdefault(_kind(row), row)
            if (row.size_bytes, row.slide) < (known.size_bytes, known.slide):
                smallest[_kind(row)] = row
    chosen = [row for row in smallest.values() if row.size_bytes <= _LARGEST_BYTES]
    return sorted(chosen, key=lambda row: row.slide)


def disagreement(slides: Store, index: Store, row: SlideRow, stage_dir: str | None) -> str | None:
    """What an independent reader shows otherwise; empty where both agree, None where none reads the slide."""
    try:
        data = index.get(IndexLayout.thumbnail(row.digest))
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as stored:
            ours = np.asarray(stored.convert("RGB"))
        with staged(slides, row.header.objects, stage_dir) as path:
            theirs = _picture_by_another(path, row)
    except (EosinError, NotFound, ObjectChanged, OSError):
        return None
    is_even = row.header.mpp_x == row.header.mpp_y
    return None if theirs is None else _difference(ours, theirs, is_even)


def _kind(row: SlideRow) -> tuple[object, ...]:
    levels = row.header.levels
    layout = tuple((level.compression, level.color_space, level.predictor) for level in levels[:1])
    return row.header.vendor, row.header.format, layout, len(row.header.objects) > 1


def _picture_by_another(path: Path, row: SlideRow) -> Pixels | None:
    for reader in (_by_wsidicom, _by_openslide) if row.header.format == "dicom" else (_by_openslide,):
        try:
            return reader(path, row)
        except Exception:  # a library that does not read the slide, or is not there, has no opinion of it
            continue
    return None


def _by_openslide(path: Path, row: SlideRow) -> Pixels | None:
    """None where its finest level is smaller than ours: of several images it takes the first."""
    import openslide

    with openslide.OpenSlide(path) as slide:
        if slide.dimensions[0] < row.header.levels[0].width_px:
            return None
        wide = [i for i, (w, h) in enumerate(slide.level_dimensions) if min(w, h) >= _SIDE_PX] or [0]
        size = slide.level_dimensions[wide[-1]]
        return over_white(np.asarray(slide.read_region((0, 0), wide[-1], size)))


def _by_wsidicom(path: Path, row: SlideRow) -> Pixels | None:
    from wsidicom import WsiDicom

    with WsiDicom.open([each for each in path.parent.rglob("*") if each.is_file()]) as slide:
        return np.asarray(slide.read_thumbnail((512, 512)))


def _difference(ours: Pixels, theirs: Pixels, is_even: bool) -> str:
    aspects = [picture.shape[1] / picture.shape[0] for picture in (ours, theirs)]
    # Our picture of a slide of uneven resolution has square pixels, a library's has the slide's.
    if is_even and abs(aspects[0] / aspects[1] - 1) > _MOST_ASPECT:
        return (
            f"its picture is {aspects[0]:.2f} times as wide as high, another reader's {aspects[1]:.2f} times"
        )
    # No finer than the coarser of the two, else what one of them cannot show is taken for a difference.
    side_px = min(_SIDE_PX, *ours.shape[:2], *theirs.shape[:2])
    one, other = (
        cv2.resize(picture, (side_px, side_px), interpolation=cv2.INTER_AREA).astype(np.float32)
        for picture in (ours, theirs)
    )
    apart, contrast = float(np.abs(one - other).mean()), float(np.abs(other - other.mean((0, 1))).mean())
    if apart > max(_MOST_DIFFERENCE, _MOST_SHARE_OF_CONTRAST * contrast):
        return f"its picture is not another reader's: {apart:.0f} grey levels apart on average"
    return ""
