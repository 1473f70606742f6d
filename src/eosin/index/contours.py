"""Tissue contours of slides as GeoJSON, one file a slide: written as QuPath opens them, and read back."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from eosin.errors import UserError
from eosin.index.listing import Unit, is_included
from eosin.index.overrides import Override, Overrides
from eosin.index.rows import SlideRow
from eosin.index.snapshot import open_snapshot
from eosin.index.tissue_mask import TissueMask
from eosin.slides.errors import SlideError, absent_or_changed
from eosin.slides.model import SlideHeader
from eosin.storage import AccessDenied, ByteRange, NotFound, ObjectChanged, join_uri, open_store, split_uri

_AT_ONCE = 4
_TISSUE = "Tissue"
_PROPERTIES = {"objectType": "annotation", "classification": {"name": _TISSUE, "color": [0, 170, 60]}}
_QUPATH_0_2 = "PathAnnotationObject"
_SUFFIX = ".geojson"
_MOST_BYTES = 256 << 20


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
    chosen = [i for i, name in enumerate(names) if is_included(name, slides)]

    def write(number: int) -> int:
        row = snapshot.rows.alone(number)
        if row.tissue is None:
            return -1
        collection = contours_of(row)
        store.put(row.slide + _SUFFIX, json.dumps(collection, separators=(",", ":")).encode())
        return len(collection["features"])

    with ThreadPoolExecutor(_AT_ONCE, "contours") as threads:
        written = [num for num in threads.map(write, chosen) if num >= 0]
    if not written:
        raise UserError(
            f"no slide of {index_uri} that matches has a tissue mask", hint="see `eosin index inspect`"
        )
    return ContoursResult(out_uri, len(written), sum(written))


def contours_of(row: SlideRow) -> dict[str, Any]:
    """GeoJSON FeatureCollection (RFC 7946 but for the frame, which is QuPath's: level-0 pixels, y down, from
    the corner of what was scanned) of a mask.

    A simple polygon for each connected part of tissue, with its holes, a sixth of a mask pixel inside it, so
    that `drawn_mask` gives the mask again. Each says of which slide it is.
    """
    assert row.tissue is not None
    properties = {**_PROPERTIES, "metadata": {"slide": row.slide}}
    features = [
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings}, "properties": properties}
        for rings in _polygons(row.tissue, (row.header.origin_x_px, row.header.origin_y_px))
    ]
    return {"type": "FeatureCollection", "features": features}


def _polygons(mask: TissueMask, origin_px: tuple[int, int]) -> list[list[list[list[float]]]]:
    """Closed rings of each part, [x, y] in level-0 pixels from `origin_px`: the outline, then the holes."""
    # At three times the size the line through the middle of border pixels is a sixth of a pixel inside.
    large = np.repeat(np.repeat(mask.array.view(np.uint8), 3, axis=0), 3, axis=1)
    _part_at_corners(mask.array, large)
    lines, hierarchy = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if hierarchy is None:
        return []
    found: dict[int, list[list[list[float]]]] = {}
    for number, line in enumerate(lines):
        parent = int(hierarchy[0][number][3])
        if len(line) >= 3:
            ring = _ring(line[:, 0], mask, origin_px)
            found.setdefault(number if parent < 0 else parent, []).insert(0 if parent < 0 else 1, ring)
    return list(found.values())


def _part_at_corners(mask: npt.NDArray[np.bool_], large: npt.NDArray[np.uint8]) -> None:
    """Cut what touches at a corner alone: a line that runs through there twice is no simple polygon."""
    above, below = mask[:-1], mask[1:]
    for one, other, shift in ((slice(None, -1), slice(1, None), 0), (slice(1, None), slice(None, -1), 1)):
        rows, columns = np.nonzero(above[:, one] & below[:, other] & ~above[:, other] & ~below[:, one])
        large[3 * rows + 2, 3 * columns + 2 + shift] = 0
        large[3 * rows + 3, 3 * columns + 3 - shift] = 0


def _ring(points: Any, mask: TissueMask, origin_px: tuple[int, int]) -> list[list[float]]:
    scaled = (points.astype(np.float64) + 0.5) / 3 * (mask.pixel_x_px, mask.pixel_y_px)
    ring = np.round(scaled - origin_px, 2).tolist()
    return [*ring, ring[0]]


def find_contours(uri: str, units: Iterable[Unit]) -> tuple[dict[str, Override], list[str]]:
    """Of each slide's object key, where its contours lie under `uri`; and the files that name no slide.

    A file is named as overrides name a slide (key, file name, name without suffix) with `.geojson` after
    it. Raises `UserError` where none names a slide.
    """
    store = open_store(uri)
    lines = {
        info.key.removesuffix(_SUFFIX): Override(contours=join_uri(uri, info.key), contours_etag=info.etag)
        for info in store.list()
        if info.key.endswith(_SUFFIX)
    }
    found, unknown = Overrides(lines, "").matched(units)
    if not found:
        named = f", such as {unknown[0]}{_SUFFIX}," if unknown else ""
        raise UserError(
            f"none of the {len(lines)} GeoJSON files at {uri}{named} names a slide",
            hint="they are named SLIDE.geojson, as `eosin index contours` writes them",
        )
    return found, [name + _SUFFIX for name in unknown]


def drawn_mask(override: Override, slide: str, header: SlideHeader, like: TissueMask) -> TissueMask:
    """The tissue that the contours of `override` enclose, on the pixels of `like`.

    A pixel is tissue where its centre lies in a polygon and in no hole of it. Raises `SlideError`
    (`bad-contours`, with feature and fault; `missing`, `changed` or `denied`) where the file is not what it
    was when it was listed, is no GeoJSON of polygons, or outlines another slide.
    """
    mask = np.zeros((like.height, like.width), bool)
    finest, slack_px = header.levels[0], max(like.pixel_x_px, like.pixel_y_px)
    try:
        for number, rings, by_qupath in _tissue_polygons(json.loads(_fetched(override)), slide):
            where = f"feature {number}"
            origin_px = (header.origin_x_px, header.origin_y_px) if by_qupath else (0, 0)
            points = [_ring_points(ring, where) + origin_px for ring in rings]
            low, high = points[0].min(axis=0), points[0].max(axis=0)
            if (low < -slack_px).any() or (
                high > np.add((finest.width_px, finest.height_px), slack_px)
            ).any():
                size = f"{finest.width_px} × {finest.height_px}"
                raise ValueError(f"{where} lies outside the slide of {size} px: it is another slide's, or not"
                                 " in level-0 pixels")  # fmt: skip
            _fill(mask, [each / (like.pixel_x_px, like.pixel_y_px) for each in points], where)
    except (ValueError, RecursionError) as error:  # json's own are ValueErrors
        raise SlideError("bad-contours", f"{override.contours}: {error}") from error
    return TissueMask.from_array(mask, like.pixel_x_px, like.pixel_y_px)


def _fetched(override: Override) -> bytes:
    root, key = split_uri(override.contours)
    store = open_store(root)
    try:
        info = store.head(key)
        if info.etag != override.contours_etag:
            raise ObjectChanged(key)
        if info.size_bytes > _MOST_BYTES:
            raise ValueError(f"{info.size_bytes / 1e6:.0f} MB are more than contours need")
        return store.get_ranges([ByteRange(key, 0, info.size_bytes, info.etag)])[0]
    except AccessDenied as error:
        raise SlideError("denied", error.message) from error
    except (NotFound, ObjectChanged) as error:
        raise absent_or_changed(override.contours, error) from error


def _tissue_polygons(tree: Any, slide: str) -> Iterator[tuple[int, Any, bool]]:
    """Rings of each polygon, with the number of its feature and whether QuPath (or eosin) wrote it, whose
    frame begins where the scanned area does; TRIDENT's is OpenSlide's. Raises ValueError."""
    if isinstance(tree, dict):
        tree = tree.get("features") if tree.get("type") == "FeatureCollection" else [tree]
    if not isinstance(tree, list):
        raise ValueError("it is no FeatureCollection")
    for number, feature in enumerate(tree):
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            raise ValueError(f"feature {number} is no GeoJSON Feature")
        geometry, properties = feature.get("geometry") or {}, feature.get("properties") or {}
        if not isinstance(geometry, dict) or not isinstance(properties, dict):
            raise ValueError(f"feature {number} is no GeoJSON Feature")
        _refuse_other(properties, slide, number)
        kind, coordinates = geometry.get("type"), geometry.get("coordinates")
        if kind not in ("Polygon", "MultiPolygon") or not isinstance(coordinates, list):
            raise ValueError(f"feature {number} is a {kind or 'feature without geometry'}, not a polygon")
        for rings in [coordinates] if kind == "Polygon" else coordinates:
            if not isinstance(rings, list) or not rings:
                raise ValueError(f"feature {number} has a polygon without rings")
            by_qupath = "objectType" in properties or "object_type" in properties
            yield number, rings, by_qupath or feature.get("id") == _QUPATH_0_2


def _refuse_other(properties: Mapping[str, Any], slide: str, number: int) -> None:
    """What is drawn for another slide, or classified as something else than tissue."""
    told, of = (properties.get(name) for name in ("classification", "metadata"))
    name = (
        told.get("name") or ": ".join(map(str, told.get("names") or ())) if isinstance(told, dict) else told
    )
    if name and str(name).casefold() != _TISSUE.casefold():
        raise ValueError(
            f"feature {number} is classified {name}; contours of tissue are {_TISSUE}, or nothing"
        )
    if isinstance(of, dict) and of.get("slide", slide) != slide:
        raise ValueError(f"feature {number} was drawn for the slide {of['slide']}")


def _ring_points(ring: Any, where: str) -> npt.NDArray[np.float64]:
    """[n, 2], the first point again at the end. Raises ValueError."""
    try:
        points = np.array([point[:2] for point in ring], np.float64)
    except (TypeError, ValueError):
        points = np.zeros((0, 2))
    if points.ndim != 2 or points.shape[1:] != (2,) or len(points) < 4 or not np.isfinite(points).all():
        raise ValueError(f"{where} has a ring that is not four or more points [x, y]")
    if (points[0] != points[-1]).any():
        raise ValueError(f"{where} has a ring that is not closed")
    return points


def _fill(mask: npt.NDArray[np.bool_], rings: Sequence[npt.NDArray[np.float64]], where: str) -> None:
    """Set what the first of `rings` (in mask pixels) encloses and the others do not. Raises ValueError."""
    low = np.clip(np.floor(rings[0].min(axis=0)).astype(int), 0, mask.shape[::-1])
    high = np.clip(np.ceil(rings[0].max(axis=0)).astype(int), low, mask.shape[::-1])
    shape = int(high[1] - low[1]), int(high[0] - low[0])
    inside, *holes = (_winding(ring - low - 0.5, shape) for ring in rings)
    for number, hole in enumerate([inside, *holes]):
        if hole.min(initial=0) < 0 < hole.max(initial=0) or np.abs(hole).max(initial=0) > 1:
            raise ValueError(f"{where}: ring {number} crosses itself")
    for number, ring in enumerate(rings[1:], 1):
        if (ring < rings[0].min(axis=0)).any() or (ring > rings[0].max(axis=0)).any():
            raise ValueError(f"{where}: hole {number} lies outside its polygon")
    cut = sum((np.abs(hole) for hole in holes), np.zeros(shape, np.int32))
    if (cut > np.abs(inside)).any():
        raise ValueError(f"{where}: holes lie outside their polygon, or over one another")
    mask[low[1] : high[1], low[0] : high[0]] |= (inside != 0) & (cut == 0)


def _winding(points: npt.NDArray[np.float64], shape: tuple[int, int]) -> npt.NDArray[np.int32]:
    """How often the ring `points` goes round each node of a grid of `shape`: 0 or one sign if it is simple.

    An edge changes the number right of it, on each line that it crosses, by its direction.
    """
    turns = np.zeros((shape[0], shape[1] + 1), np.int32)
    (x0, y0), (x1, y1) = points[:-1].T, points[1:].T
    first, last = (
        np.clip(np.ceil(np.minimum(y0, y1)), 0, shape[0]),
        np.clip(np.ceil(np.maximum(y0, y1)), 0, shape[0]),
    )
    spans = (last - first).astype(np.int64)
    edge = np.repeat(np.arange(len(spans)), spans)
    line = np.arange(len(edge)) - np.repeat(np.cumsum(spans) - spans, spans) + first[edge].astype(np.int64)
    x = x0[edge] + (line - y0[edge]) / (y1 - y0)[edge] * (x1 - x0)[edge]
    column = np.clip(np.ceil(x), 0, shape[1]).astype(np.int64)
    np.add.at(turns, (line, column), np.where(y1 > y0, 1, -1)[edge])
    return np.cumsum(turns, axis=1, dtype=np.int32)[:, :-1]
