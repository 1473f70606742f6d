"""Tissue contours of slides as GeoJSON, which QuPath opens as annotations: one file a slide."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import cv2
import numpy as np

from eosin.errors import UserError
from eosin.index.rows import SlideRow
from eosin.index.snapshot import open_snapshot
from eosin.index.tissue_mask import TissueMask
from eosin.storage import open_store

_AT_ONCE = 16
_PROPERTIES = {"objectType": "annotation", "classification": {"name": "Tissue", "color": [0, 170, 60]}}


@dataclass(frozen=True)
class ContoursResult:
    """What was written, and where."""

    uri: str
    num_slides: int
    num_contours: int


def write_contours(index_uri: str, out_uri: str, slides: Sequence[str] = ("*",)) -> ContoursResult:
    """Publish `SLIDE.geojson` under `out_uri` for every slide of the newest snapshot that has a tissue mask.

    `slides`: patterns of their keys. Memory is that of a few masks. Raises `UserError` where there is no
    index, or no slide with a mask matches.
    """
    snapshot, store = open_snapshot(index_uri), open_store(out_uri)
    names = snapshot.rows.column("slide")
    chosen = [i for i, name in enumerate(names) if any(fnmatchcase(name, each) for each in slides)]

    def write(number: int) -> int:
        row = snapshot.rows.alone(number)
        if row.tissue is None:
            return -1
        collection = contours_of(row)
        store.put(f"{row.slide}.geojson", json.dumps(collection, separators=(",", ":")).encode())
        return len(collection["features"])

    with ThreadPoolExecutor(_AT_ONCE, "contours") as threads:
        written = [num for num in threads.map(write, chosen) if num >= 0]
    if not written:
        raise UserError(
            f"no slide of {index_uri} that matches has a tissue mask", hint="see `eosin index inspect`"
        )
    return ContoursResult(out_uri, len(written), sum(written))


def contours_of(row: SlideRow) -> dict[str, Any]:
    """GeoJSON FeatureCollection (RFC 7946 but for the frame, which is level-0 pixels, y down) of a mask.

    A polygon for each connected part of tissue, with its holes, within a quarter of a mask pixel.
    """
    assert row.tissue is not None
    features = [
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings}, "properties": _PROPERTIES}
        for rings in _polygons(row.tissue)
    ]
    return {"type": "FeatureCollection", "features": features}


def _polygons(mask: TissueMask) -> list[list[list[list[float]]]]:
    """Closed rings of each part, [x, y] in level-0 pixels: the outline first, then the holes."""
    # At twice the size the line through the middle of border pixels is a quarter of a pixel inside.
    twice = np.repeat(np.repeat(mask.array.view(np.uint8), 2, axis=0), 2, axis=1)
    lines, hierarchy = cv2.findContours(twice, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if hierarchy is None:
        return []
    found: dict[int, list[list[list[float]]]] = {}
    for number, line in enumerate(lines):
        parent = int(hierarchy[0][number][3])
        if len(line) >= 3:
            ring = _ring(line[:, 0], mask)
            found.setdefault(number if parent < 0 else parent, []).insert(0 if parent < 0 else 1, ring)
    return list(found.values())


def _ring(points: Any, mask: TissueMask) -> list[list[float]]:
    scaled = (points.astype(np.float64) + 0.5) / 2 * (mask.pixel_x_px, mask.pixel_y_px)
    ring = np.round(scaled, 1).tolist()
    return [*ring, ring[0]]
