"""Reading of one slide into its row: header, a tile of every level decoded, tissue, thumbnail."""

import hashlib
import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from eosin.config.index import IndexConfig
from eosin.errors import EosinError
from eosin.index.contours import drawn_mask
from eosin.index.focus import Focus, focus_of
from eosin.index.overrides import Override
from eosin.index.overview import Overview, read_local_overview, read_overview
from eosin.index.rows import OK, SlideRow
from eosin.index.sources import origin_of
from eosin.index.tissue import detect_tissue
from eosin.index.tissue_model import TissueModel
from eosin.layout import IndexLayout
from eosin.slides.decode import decode_tile
from eosin.slides.errors import SlideError
from eosin.slides.header import OpenedSlide, opened
from eosin.slides.model import SlideHeader, SlideObject, TileTable
from eosin.slides.region import fetch_tiles
from eosin.slides.table import level_table
from eosin.storage import AccessDenied, ObjectInfo, RangedObjects, Store
from eosin.words import counted

INDEXER_VERSION = 9
_THUMBNAIL_PX = 512
_SCALE = 8  # at which every byte of a JPEG is read, and few of its pixels are made
_DETAIL_CHARS = 300
_NO_OVERRIDE = Override()
# Headers are waited for, pictures fill memory: of a large slide 30 MB, and several times that for its mask.
_PICTURES_AT_ONCE = threading.BoundedSemaphore(8)


@dataclass(frozen=True)
class ScanContext:
    """What reading a slide needs: where it lies, where its tables go, and how tissue is found."""

    slides: Store
    index: Store
    config: IndexConfig
    stage_dir: str | None = None
    model: TissueModel | None = None
    model_digest: str = ""


@dataclass(frozen=True)
class _Made:
    """What is published beside the row."""

    tiles: TileTable
    thumbnail: bytes
    """JPEG."""


def read_slide(
    context: ScanContext, objects: Sequence[ObjectInfo], override: Override | None, head: bytes = b""
) -> SlideRow:
    """The row of the slide that `objects` make up. Publishes its tile table and thumbnail.

    `head`: the first block of the main object, where that was read. A slide that cannot be read is a row with
    its reason. Raises only what concerns the store: `TransientError`, `UserError`.
    """
    stored = tuple(SlideObject(each.key, each.etag, each.size_bytes) for each in objects)
    override = override or _NO_OVERRIDE
    bare = _bare_row(context, stored, override)
    made: _Made | None = None
    try:
        with opened(context.slides, objects, stage_dir=context.stage_dir, head=head) as slide:
            row, made = _examined(context, _with_header(bare, slide.header, override), slide, override)
    except SlideError as error:
        row = replace(bare, read_status=error.reason, read_detail=_readable(error.message))
    except AccessDenied as error:
        row = replace(bare, read_status="denied", read_detail=_readable(error.message))
    except EosinError:
        raise
    except Exception as error:  # whatever a library makes of a hostile slide is this slide's affair alone
        detail = _readable(f"{type(error).__name__}: {error}")
        row = replace(bare, read_status="unreadable", read_detail=detail)
    if made is not None:  # not above: a store that refuses to be written to is no slide's fault
        _publish(context, row.digest, made)
    return with_override(row, override)


def with_override(row: SlideRow, override: Override | None) -> SlideRow:
    """`row` with the overrides' patient, cohort, labels and exclusion joined anew."""
    override = override or _NO_OVERRIDE
    status, detail = row.read_status, row.read_detail
    if override.exclude:
        status, detail = "excluded", "excluded by the overrides"
    return replace(
        row, status=status, detail=detail, patient=override.patient, cohort=override.cohort,
        labels=override.labels, extra=override.extra,
    )  # fmt: skip


def slide_digest(slides_uri: str, objects: Sequence[SlideObject]) -> str:
    """Names what depends on the slide's bytes alone: 32 hex digits."""
    return _sha256([slides_uri, INDEXER_VERSION, sorted([each.key, each.etag] for each in objects)])


def reuse_digest(digest: str, config: IndexConfig, override: Override | None, model_digest: str = "") -> str:
    """Equal exactly where reading the slide again would give the same row: 32 hex digits."""
    override = override or _NO_OVERRIDE
    tissue = config.tissue.model_dump(mode="json")
    drawn = [override.contours_etag] if override.contours else []
    return _sha256([digest, override.mpp_x, override.mpp_y, tissue, config.max_mpp, model_digest, *drawn])


def _readable(text: str) -> str:
    """One line without what a damaged file would smuggle onto a terminal, of at most 300 characters."""
    plain = "".join(each if each.isprintable() else " " for each in text)
    return plain if len(plain) <= _DETAIL_CHARS else plain[:_DETAIL_CHARS] + "…"


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _bare_row(context: ScanContext, stored: tuple[SlideObject, ...], override: Override) -> SlideRow:
    digest = slide_digest(context.slides.uri, stored)
    header = SlideHeader(stored, "", "", (), None, None)
    return SlideRow(
        slide=stored[0].key,
        status="", detail="", header=header, digest=digest, **origin_of(context.slides, stored[0].key),
        reuse_digest=reuse_digest(digest, context.config, override, context.model_digest),
    )  # fmt: skip


def _with_header(row: SlideRow, header: SlideHeader, override: Override) -> SlideRow:
    # A series lists its label and macro images too, after the objects that hold levels.
    known = {each.key for each in header.objects}
    others = tuple(each for each in row.header.objects if each.key not in known)
    source = "header" if header.mpp_x and header.mpp_y else ""
    if override.mpp_x and override.mpp_y:
        header, source = replace(header, mpp_x=override.mpp_x, mpp_y=override.mpp_y), "override"
    return replace(row, header=replace(header, objects=header.objects + others), mpp_source=source)


def _examined(
    context: ScanContext, row: SlideRow, slide: OpenedSlide, override: Override
) -> tuple[SlideRow, _Made | None]:
    """The row with its status, after decoding what the index needs to see, and what is published with it."""
    header = row.header
    if header.mpp_x is None or header.mpp_y is None:
        detail = "neither header nor overrides give its µm a pixel"
        return replace(row, read_status="no-mpp", read_detail=detail), None
    if max(header.mpp_x, header.mpp_y) > context.config.max_mpp:
        detail = f"its finest level has {max(header.mpp_x, header.mpp_y):.4g} µm a pixel, more than"
        detail = f"{detail} {context.config.max_mpp:g}"
        return replace(row, read_status="too-coarse", read_detail=detail), None
    try:
        with _PICTURES_AT_ONCE:
            overview, content, focus = _seen(context.config, header, slide)
            tissue = detect_tissue(
                overview, header.mpp_x, header.mpp_y, context.config.tissue, model=context.model, focus=focus
            )
        if override.contours:
            tissue = drawn_mask(override, row.slide, header, tissue)
    except SlideError as error:
        return replace(row, read_status=error.reason, read_detail=_readable(error.message)), None
    tissue_mm2 = tissue.area * header.mpp_x * header.mpp_y / 1e6
    status = OK if tissue_mm2 > 0 else "no-tissue"
    remark = (
        ""
        if status == OK
        else "its contours enclose no tissue"
        if override.contours
        else "no tissue was found on it"
    )
    row = replace(
        row, tissue=tissue, tissue_mm2=tissue_mm2, has_thumbnail=True, read_status=status,
        read_detail=_remark(overview, remark, slide.remark), content=content,
        contours=override.contours,
    )  # fmt: skip
    return row, _Made(slide.tiles, encode_thumbnail(overview.pixels))


def _seen(config: IndexConfig, header: SlideHeader, slide: OpenedSlide) -> tuple[Overview, str, Focus | None]:
    """The overview, the digest of what is on the slide, and what tells its focus. Raises `SlideError`."""
    mpp = config.tissue.mpp
    if slide.local is not None:
        overview = read_local_overview(slide.local, header, mpp)
        return overview, content_digest(header, [overview.pixels.tobytes()]), None
    largest = check_levels(slide.ranges, header, slide.tiles)
    overview = read_overview(slide.ranges, header, slide.tiles, mpp)
    content = content_digest(header, [slide.tiles["size_bytes"].tobytes(), *largest])
    return overview, content, focus_of(header, slide.tiles, largest)


def _remark(overview: Overview, nothing: str, remark: str) -> str:
    damaged = f"{counted(overview.num_damaged, 'tile')} cannot be decoded" if overview.num_damaged else ""
    return "; ".join(each for each in (nothing, damaged, remark) if each)


def check_levels(store: RangedObjects, header: SlideHeader, tiles: TileTable) -> list[bytes]:
    """Decode the largest tile of every level, likely tissue; their bytes, finest level first.

    Raises `SlideError` (`corrupt-tile`) naming level and tile.
    """
    largest = [
        level.first_tile + int(np.argmax(level_table(level, tiles)["size_bytes"])) for level in header.levels
    ]
    fetched = fetch_tiles(store, header, tiles, largest)
    for number, (level, index) in enumerate(zip(header.levels, largest, strict=True)):
        try:
            decode_tile(level, fetched[index], _SCALE)
        except SlideError as error:
            where = f"level {number}, tile {index - level.first_tile}"
            raise SlideError(error.reason, f"{where}: {error.message}") from error
    return [fetched[index] for index in largest]


def content_digest(header: SlideHeader, parts: Iterable[bytes]) -> str:
    """Equal for slides that show the same, under whatever name and metadata: 32 hex digits.

    Over the levels' sizes and `parts`: the compressed size of every tile and the bytes of each level's
    largest one, which are at hand, so that telling copies apart costs no request.
    """
    sizes = [[each.width_px, each.height_px, each.tile_width_px, each.tile_height_px, each.compression]
             for each in header.levels]  # fmt: skip
    digest = hashlib.sha256(json.dumps(sizes).encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:32]


def _publish(context: ScanContext, digest: str, made: _Made) -> None:
    context.index.put(IndexLayout.tiles(digest), b"".join((made.tiles.data, made.thumbnail)))


def encode_thumbnail(pixels: npt.NDArray[np.uint8]) -> bytes:
    """JPEG of at most 512 px a side."""
    import simplejpeg

    shrink = min(1.0, _THUMBNAIL_PX / max(pixels.shape[:2]))
    size = (max(1, round(pixels.shape[1] * shrink)), max(1, round(pixels.shape[0] * shrink)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if shrink < 1 else pixels
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(small), quality=85)
    return encoded
