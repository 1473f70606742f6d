"""Thumbnails with the outline of the tissue, and the contact sheet of all slides on one page."""

import base64
import io
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

from eosin.errors import PermanentError, UserError
from eosin.index.rows import OK, SlideRow
from eosin.index.snapshot import Snapshot, open_snapshot
from eosin.index.tissue_mask import TissueMask
from eosin.slides.errors import cure_of
from eosin.storage import NotFound, open_store, split_uri

Pixels = npt.NDArray[np.uint8]
_OUTLINE = (0, 170, 60)


def load_thumbnail(snapshot: Snapshot, row: SlideRow, side_px: int, quality: int = 80) -> bytes | None:
    """JPEG of at most `side_px` a side (512 are published), the border of the mask drawn in.

    None where the slide has none, or the stored picture or mask is gone or damaged: a report does without.
    """
    pixels = outlined_thumbnail(snapshot, row, side_px)
    if pixels is None:
        return None
    return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420"))


def outlined_thumbnail(snapshot: Snapshot, row: SlideRow, side_px: int) -> Pixels | None:
    """As `load_thumbnail`, [h, w, 3] RGB."""
    if not row.has_thumbnail:
        return None
    try:
        with Image.open(io.BytesIO(snapshot.load_thumbnail(row)), formats=("JPEG",)) as stored:
            picture = stored.convert("RGB")
        picture.thumbnail((side_px, side_px))
        return _outlined(np.array(picture), row.tissue)
    except (NotFound, OSError, PermanentError):
        return None


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


_QUALITY = 72
_AT_ONCE = 16
_ROWS_AHEAD = 256


@dataclass(frozen=True)
class SheetResult:
    """What was written, and where."""

    uri: str
    num_slides: int
    num_shown: int
    num_bytes: int


@dataclass(frozen=True)
class SheetCell:
    """One slide of the page; `picture` is a data URI, empty where there is none."""

    slide: str
    status: str
    detail: str
    cure: str
    """What its owner can do; empty where nothing is wrong."""
    folder: str
    """URI of the folder it lies in."""
    picture: str
    tissue_share: float | None
    """Of the slide's area."""
    mpp: float | None


def write_sheet(
    index_uri: str, out: str, *, side_px: int = 160, max_slides: int = 2000, page: int | None = None,
    title: str = "",
) -> SheetResult:  # fmt: skip
    """Write the newest snapshot's sheet to `out`, a local path or a URI: one HTML file that fetches nothing.

    Slides come by the share of tissue, least first, so that what a mask got wrong lies at both ends; what
    cannot be read is listed with its reason. Of more than `max_slides` an even sample is shown, or `page` of
    them (from 1), and the page says so. Memory is that of some hundred thumbnails. Raises
    `UserError` for an index or a place that is not there.
    """
    if not 32 <= side_px <= 512:
        raise UserError(f"thumbnails of {side_px} px", hint="give --px from 32 to 512")
    if max_slides < 1:
        raise UserError(f"a sheet of {max_slides} slides", hint="give --max-slides of 1 or more")
    snapshot = open_snapshot(index_uri)
    seen, unseen = _in_order(snapshot)
    num_pages = max(1, -(-len(seen) // max_slides))
    if page is not None and not 1 <= page <= num_pages:
        raise UserError(f"there is no page {page} of {num_pages}", hint="pages of --max-slides count from 1")
    shown = _sample(seen, max_slides) if page is None else seen[(page - 1) * max_slides : page * max_slides]
    html = _template().stream(
        title=title or index_uri, snapshot=snapshot.manifest, cells=_cells(snapshot, shown, side_px),
        num_shown=len(shown), num_seen=len(seen), unseen=[snapshot.rows[i] for i in unseen[:max_slides]],
        num_unseen=len(unseen), side_px=side_px, cure_of=cure_of, page=page, num_pages=num_pages,
    )  # fmt: skip
    root, key = split_uri(out)
    with tempfile.TemporaryDirectory(prefix="eosin-sheet-") as folder:
        path = Path(folder, "sheet.html")
        html.dump(str(path), encoding="utf-8")
        num_bytes = path.stat().st_size
        open_store(root).put_file(key, path)
    return SheetResult(out, len(snapshot.rows), len(shown), num_bytes)


def _in_order(snapshot: Snapshot) -> tuple[list[int], list[int]]:
    """Rows with a thumbnail by tissue share, and rows without one, by name."""
    table = snapshot.rows.table
    seen, unseen = (np.flatnonzero(table["has_thumbnail"] == value) for value in (True, False))
    area_px = np.maximum(table["width_px"][seen] * table["height_px"][seen], 1)
    share = np.nan_to_num(table["tissue_mm2"][seen] / (area_px * table["mpp_x"][seen] * table["mpp_y"][seen]))
    return seen[np.argsort(share, kind="stable")].tolist(), unseen.tolist()


def tissue_share(row: SlideRow) -> float | None:
    """Share of the slide's area that is tissue; None where it was never looked at."""
    header = row.header
    if row.tissue is None or not header.levels or not header.mpp_x or not header.mpp_y:
        return None
    finest = header.levels[0]
    area_mm2 = finest.width_px * finest.height_px * header.mpp_x * header.mpp_y / 1e6
    return row.tissue_mm2 / area_mm2 if area_mm2 else None


def _sample(indices: Sequence[int], most: int) -> list[int]:
    num = min(len(indices), most)
    return [indices[i * len(indices) // num] for i in range(num)]


def _cells(snapshot: Snapshot, shown: Sequence[int], side_px: int) -> Iterator[SheetCell]:
    with ThreadPoolExecutor(_AT_ONCE, "sheet") as pool:
        for start in range(0, len(shown), _ROWS_AHEAD):
            rows = [snapshot.rows[i] for i in shown[start : start + _ROWS_AHEAD]]
            yield from pool.map(partial(_cell, snapshot, side_px), rows)


def _cell(snapshot: Snapshot, side_px: int, row: SlideRow) -> SheetCell:
    jpeg = load_thumbnail(snapshot, row, side_px, _QUALITY)
    picture = "" if jpeg is None else "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    status = "" if row.status == OK else row.status
    return SheetCell(
        row.slide, status, row.detail, cure_of(status), row.uri.rpartition("/")[0], picture,
        tissue_share(row), row.header.mpp_x,
    )  # fmt: skip


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("eosin.index"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("sheet.html.j2")
