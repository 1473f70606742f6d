"""Publishing of patch sets: rows from pixels, shards under markers, a page of patches, then the manifest."""

import hashlib
import io
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from eosin import __version__
from eosin.config.patches import EncodingConfig
from eosin.errors import PermanentError, UserError
from eosin.index.snapshot import Snapshot
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.patches.geometry import extent_px
from eosin.patches.request import PatchRequest
from eosin.patches.sets.patchset import CONTACT_SHEET, ShardMarker, read_shard
from eosin.records import PatchSetManifest, PatchSetShard, RejectedPatch, load_record, publish_once
from eosin.records.index import SlideLeftOut
from eosin.records.patchset_shard import PatchRow, encode_shard
from eosin.slides.errors import SlideError
from eosin.storage import Store, join_uri, open_store
from eosin.words import first_of

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


_PNG_LEVEL = 3


def encode_image(pixels: npt.NDArray[np.uint8], config: EncodingConfig) -> bytes:
    """PNG or JPEG bytes of [h, w, 3] RGB pixels."""
    jpeg = config.encoding == "jpeg"
    quality = [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality]
    options = quality if jpeg else [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL]
    done, data = cv2.imencode(".jpg" if jpeg else ".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise PermanentError(f"a patch of shape {pixels.shape} cannot be encoded as {config.encoding}")
    return bytes(data)


def encode_row(
    snapshot: Snapshot,
    request: PatchRequest,
    pixels: npt.NDArray[np.uint8],
    patch_px: int,
    encoding: EncodingConfig,
    split: str = "",
) -> PatchRow:
    """The row of a patch set for `pixels` [patch_px, patch_px, 3]."""
    row = snapshot.rows[request.slide]
    assert row.tissue is not None
    width_px, height_px = extent_px(row.header, patch_px, request.mpp)
    foreground = row.tissue.fraction(request.x_px, request.y_px, width_px, height_px)
    return PatchRow(
        image=encode_image(pixels, encoding),
        slide=row.slide,
        x_px=request.x_px,
        y_px=request.y_px,
        mpp=request.mpp,
        foreground=float(np.float32(foreground)),  # as Parquet keeps it, so that a tar says the same
        patient=row.patient,
        split=split,
    )


def rejected_patch(snapshot: Snapshot, request: PatchRequest, error: SlideError) -> RejectedPatch:
    """The record of a patch that could not be read."""
    slide = snapshot.rows[request.slide].slide
    return RejectedPatch(slide=slide, x_px=request.x_px, y_px=request.y_px, mpp=request.mpp,
                         reason=f"{error.reason}: {error.message}")  # fmt: skip


_EVERY_S = 1.0


class Throughput:
    """Counts patches of one worker; `total` is of `unit` (patches, slides or shards)."""

    def __init__(
        self, log: RunLog, total: int, unit: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log, self._total, self._unit, self._clock = log, total, unit, clock
        self._start_s = self._said_s = clock()
        self._done = self._num_patches = self._num_bytes = 0

    def add(self, rows: Sequence[PatchRow], done: int | None = None) -> None:
        """Count `rows`; `done` of the unit are finished (None: as many more as there are rows)."""
        self._num_patches += len(rows)
        self._num_bytes += sum(len(row.image) for row in rows)
        self._done = self._done + len(rows) if done is None else done
        if self._done >= self._total or self._clock() - self._said_s >= _EVERY_S:
            self._said_s = self._clock()
            seconds = max(self._said_s - self._start_s, 1e-9)
            left = self._total - self._done
            self._log.progress(
                self._done, self._total, self._unit, patches=self._num_patches,
                patches_per_s=round(self._num_patches / seconds, 1),
                **({"eta_s": round(left * seconds / self._done)} if self._done else {}),
            )  # fmt: skip

    def report(self) -> None:
        """The whole, once all is done; nothing where nothing was to do."""
        if self._num_patches:
            seconds = max(self._clock() - self._start_s, 1e-9)
            self._log.event(
                "decoded", num_patches=self._num_patches, num_bytes=self._num_bytes,
                seconds=round(seconds, 2), patches_per_s=round(self._num_patches / seconds, 1),
            )  # fmt: skip


_ON_CONTACT_SHEET = 48
_MARKERS_AT_ONCE = 32
_NAMED_AT_MOST = 20


def shard_suffix(format: str) -> str:
    """What the key of a shard of `format` ends with."""
    return "tar" if format == "webdataset" else "parquet"


def find_published(store: Store, name: str) -> set[str]:
    """Keys of the set's whole shards: both the shard and its marker are there. Costs one listing.

    A shard that was deleted under its marker is not among them: it is decoded again, to the same bytes.
    """
    keys = {info.key for info in store.list(RunLayout.patch_set(name))}
    return {
        key
        for key in keys
        if key.endswith(RunLayout.SHARD_SUFFIXES) and RunLayout.patch_set_marker_of(key) in keys
    }


def publish_shard(store: Store, key: str, rows: Sequence[PatchRow], marker: ShardMarker) -> PatchSetShard:
    """Publish a shard of `rows` at `key`, then its marker with key, count and digest filled in."""
    file = key.rpartition("/")[2]
    data = encode_shard(rows, marker.format, file.partition(".")[0])
    store.put(key, data)
    shard = PatchSetShard(key=file, num_patches=len(rows), sha256=hashlib.sha256(data).hexdigest())
    slides = tuple(sorted({row.slide for row in rows}))
    whole = marker.model_copy(update={"shard": shard, "slides": slides})
    store.put(RunLayout.patch_set_marker_of(key), whole.to_json())
    return shard


def publish_manifest(
    store: Store, name: str, shard_keys: Sequence[str], log: RunLog, *, index_uri: str = "",
    without: Mapping[str, str] | None = None,
) -> PatchSetManifest:  # fmt: skip
    """Publish the manifest of the shards, a contact sheet before it; a manifest that is there already
    wins, and is returned.

    `without`: of slides that were asked for, why each is left out if no shard has a patch of it. Raises
    `UserError` naming shards that are missing, or where the set has no patch.
    """
    folder_uri = join_uri(store.uri, RunLayout.patch_set(name))
    published = load_record(PatchSetManifest, store, RunLayout.patch_set_manifest(name))
    if published is not None:
        return published
    manifest = _manifest(name, index_uri, _read_markers(store, name, shard_keys), without or {})
    sheet = contact_sheet(_sample(open_store(folder_uri), manifest))
    store.put(RunLayout.patch_set(name) + CONTACT_SHEET, sheet)
    published = publish_once(store, RunLayout.patch_set_manifest(name), manifest)
    log.event("patch-set-published", name=name, num_patches=manifest.num_patches, digest=manifest.digest[:16],
              slides=len(manifest.slides), left_out=len(manifest.left_out),
              rejected=len(manifest.rejected))  # fmt: skip
    return published


def read_shard_marker(store: Store, shard_key: str) -> ShardMarker | None:
    """The marker of a shard; None where there is none."""
    return load_record(ShardMarker, store, RunLayout.patch_set_marker_of(shard_key))


def _read_markers(store: Store, name: str, shard_keys: Sequence[str]) -> list[ShardMarker]:
    with ThreadPoolExecutor(_MARKERS_AT_ONCE, thread_name_prefix="eosin-markers") as threads:
        found = list(threads.map(lambda key: read_shard_marker(store, key), shard_keys))
    missing = [str(number) for number, marker in enumerate(found) if marker is None]
    if missing:
        raise UserError(
            f"patch set {name} of {store.uri} is not whole: of {len(shard_keys)} shards these are missing: "
            + first_of(missing, _NAMED_AT_MOST),
            hint="decode them first: `eosin decode`",
        )
    return [marker for marker in found if marker is not None]


def _manifest(
    name: str, index_uri: str, markers: Sequence[ShardMarker], without: Mapping[str, str]
) -> PatchSetManifest:
    first = markers[0]
    slides = {slide for marker in markers for slide in marker.slides}
    rejected = tuple(patch for marker in markers for patch in marker.rejected)
    unreadable = {patch.slide: patch.reason for patch in reversed(rejected)}
    shards = tuple(marker.shard for marker in markers if marker.shard.num_patches)
    if not shards:
        few = "lower its min_foreground, mpp or patch_px, or its hsv_filter, under another name"
        raise UserError(
            f"patch set {name} has no patch" + _reasons(markers),
            hint="index the slides again, and decode for a run on that index" if unreadable else few,
        )
    return PatchSetManifest(
        name=name,
        digest=hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest(),
        patch_px=first.patch_px,
        mpp=first.mpp,
        encoding=first.encoding,
        format=first.format,
        num_patches=sum(shard.num_patches for shard in shards),
        shards=shards,
        snapshot_id=first.snapshot_id,
        index_uri=index_uri,
        slides=tuple(sorted(slides)),
        left_out=tuple(SlideLeftOut(slide=slide, reason=unreadable.get(slide, why))
                       for slide, why in sorted(without.items()) if slide not in slides),
        rejected=rejected,
        notes=_distinct(note for marker in markers for note in marker.notes),
        eosin_version=__version__,
    )  # fmt: skip


def _reasons(markers: Sequence[ShardMarker]) -> str:
    lines = _distinct(f"{patch.slide}: {patch.reason}" for marker in markers for patch in marker.rejected)
    return "".join(f"\n  {line}" for line in lines[:_NAMED_AT_MOST])


def _distinct(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(lines))


def _sample(store: Store, manifest: PatchSetManifest) -> list[PatchRow]:
    """Patches at even distances through the set."""
    stride = max(1, -(-manifest.num_patches // _ON_CONTACT_SHEET))
    found: list[PatchRow] = []
    first = 0
    for shard in manifest.shards:
        if -first % stride < shard.num_patches:
            found += read_shard(store, shard)[-first % stride :: stride]
        first += shard.num_patches
    return found
