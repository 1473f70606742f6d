"""Header readers: from the objects of a slide to its header and tile table, by ranged reads."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from eosin.slides.errors import SlideError, absent_or_changed
from eosin.slides.model import TILE_DTYPE, SlideHeader, SlideObject, TileTable
from eosin.slides.staging import staged
from eosin.slides.table import check_table
from eosin.slides.tiff_ifd import TiffFile, is_tiff
from eosin.slides.tiff_vendors import NeedsOpenSlide
from eosin.storage import NotFound, ObjectChanged, ObjectInfo, RangedObjects, Store
from eosin.storage.range_file import RangeFile
from eosin.words import size_text

if TYPE_CHECKING:
    from eosin.slides.local import LocalSlide

HEAD_BYTES = 132
_TAIL_BYTES = 65536
# A store takes as long over two requests as over one for this much more.
_REST_BYTES = 2**20
# Of the slides that are read at once these many are copied to the disk at once.
_STAGED_AT_ONCE = threading.BoundedSemaphore(8)
_LOCAL_MAGIC = (b"SQLite format 3\0", b"ZISRAWFILE")
_LOCAL_SUFFIXES = (".mrxs", ".vms", ".vmu")
# Valid slides all the same: their owners need not upload them again.
_UNREADABLE = {
    ".vsi": "an Olympus VSI keeps its pixels in .ets files",
    ".isyntax": "it is a Philips iSyntax", ".i2syntax": "it is a Philips iSyntax",
    ".lif": "it is a Leica LIF", ".nd2": "it is a Nikon ND2",
}  # fmt: skip
_MIRAX_INDEX = "Slidedat.ini"


@dataclass(frozen=True)
class OpenedSlide:
    """A slide as read: `local` is the open staged copy where `header.access` is "local"."""

    header: SlideHeader
    tiles: TileTable
    ranges: RangedObjects
    """Where its tiles are read; what came along with the header is not asked for again."""
    local: "LocalSlide | None" = None
    remark: str = ""
    """What a person should know of how it had to be read."""


@contextmanager
def opened(
    store: Store, objects: Sequence[ObjectInfo], *, stage_dir: str | Path | None = None, head: bytes = b""
) -> Iterator[OpenedSlide]:
    """The slide that `objects` (in `store`) make up, the main one first; a staged copy is open meanwhile.

    A DICOM slide is all instances of one series; MRXS its index file and data files; all others one
    object. Only formats that OpenSlide alone places are downloaded, to `stage_dir` (None: the system's
    temporary folder), and forgotten again: their header says `access="local"` and their table is empty.
    `head`: the first block of the main one, where that was read.
    Every entry of a table lies inside its object. Raises `SlideError` with the reason otherwise;
    `TransientError` and `UserError` of the store pass through.
    """
    stored = tuple(SlideObject(each.key, each.etag, each.size_bytes) for each in objects)
    with ExitStack() as stack:
        try:
            slide = _read(store, stored, stage_dir, stack, head)
        except (ObjectChanged, NotFound) as error:
            raise absent_or_changed(stored[0].key, error) from error
        check_table(slide.header, slide.tiles)
        yield slide


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so (132 bytes or more) is DICOM part 10."""
    return head[128:132] == b"DICM"


def begins_as_slide(head: bytes) -> bool:
    """Whether a file that begins so (132 bytes or more) is of a format that holds slides."""
    return is_dicom(head) or is_tiff(head) or head.startswith(_LOCAL_MAGIC)


def open_range(store: Store, stored: SlideObject, head: bytes = b"") -> RangeFile:
    """A seekable file over one object, read by byte range, pinned to the version listed."""
    return RangeFile(store, stored.key, size_bytes=stored.size_bytes, etag=stored.etag, head=head)


def _read(
    store: Store,
    stored: tuple[SlideObject, ...],
    stage_dir: str | Path | None,
    stack: ExitStack,
    head: bytes,
) -> OpenedSlide:
    main = stored[0]
    if not main.etag:
        raise SlideError("missing", "its source names it, and nothing is there")
    _check_mirax(stored)
    if main.size_bytes == 0 and len(stored) == 1:
        raise SlideError("empty-file", "it has no bytes")
    if how := _UNREADABLE.get(PurePosixPath(main.key).suffix.lower()):
        raise SlideError(
            "unsupported-format", f"{how}, which no library here reads: export it as OME-TIFF or DICOM"
        )
    if main.key.lower().endswith(_LOCAL_SUFFIXES):
        return _open_local(store, stored, stage_dir, stack)
    file = open_range(store, main, head)
    head = file.read(HEAD_BYTES)
    if head.startswith(_LOCAL_MAGIC):
        return _open_local(store, stored, stage_dir, stack)
    if is_dicom(head):  # first: the objects of open archives are TIFF files as well, each a level of its own
        return _read_dicom(store, stored)
    if is_tiff(head):
        return _read_tiff(store, stored, file, stage_dir, stack)
    raise SlideError("not-a-slide", f"it is {_what_it_is(head)}, no slide format eosin knows")


def _read_dicom(store: Store, stored: tuple[SlideObject, ...]) -> OpenedSlide:
    from eosin.slides.dicom import read_instance, series_slide

    instances = [read_instance(open_range(store, each), each) for each in stored]
    header, tiles, remark = series_slide(instances)
    num_bytes = sum(each.stored.size_bytes for each in instances if each.walked)
    walked = (
        f"no right frame offsets: {size_text(num_bytes)} were read to find its tiles" if num_bytes else ""
    )
    return OpenedSlide(header, tiles, store, remark="; ".join(filter(None, (remark, walked))))


def _check_mirax(stored: tuple[SlideObject, ...]) -> None:
    """Raises `SlideError` where a MIRAX slide lacks the file beside its folder, or the folder."""
    folder = PurePosixPath(stored[0].key)
    if folder.name == _MIRAX_INDEX:
        raise SlideError(
            "not-a-slide", f"{folder.parent}.mrxs, which belongs to this MIRAX folder, is missing"
        )
    if folder.suffix.lower() == ".mrxs" and all(
        PurePosixPath(each.key).name != _MIRAX_INDEX for each in stored
    ):
        raise SlideError("not-a-slide", f"{_MIRAX_INDEX} of its folder {folder.stem}/ is missing")


def _read_tiff(
    store: Store,
    stored: tuple[SlideObject, ...],
    file: RangeFile,
    stage_dir: str | Path | None,
    stack: ExitStack,
) -> OpenedSlide:
    from eosin.slides.tiff import read_tiff

    try:
        tiff = TiffFile(file, stored[0].size_bytes, partial(_look_ahead, file))
        header, tiles, remark = read_tiff(tiff, stored[0])
        return OpenedSlide(header, tiles, file, remark=remark)
    except NeedsOpenSlide:
        return _open_local(store, stored, stage_dir, stack)
    except SlideError as refused:
        if refused.reason != "unsupported-compression":
            raise
        try:
            return _open_local(store, stored, stage_dir, stack)
        except SlideError:  # OpenSlide has no better opinion
            raise refused from None


def _look_ahead(file: RangeFile, offset: int) -> None:
    """Bring what is at `offset` and what will be asked for after it, in one call.

    Directories lie behind the pixels they tell of: the last ones, often all, at the end.
    """
    size_bytes = file.size_bytes
    near = range(offset, size_bytes, _TAIL_BYTES) if size_bytes - offset <= _REST_BYTES else (offset,)
    file.prefetch(*near, *(size_bytes - i * _TAIL_BYTES for i in (1, 2)))


def _open_local(
    store: Store, stored: tuple[SlideObject, ...], stage_dir: str | Path | None, stack: ExitStack
) -> OpenedSlide:
    from eosin.slides.local import open_local

    stack.enter_context(_STAGED_AT_ONCE)
    slide = open_local(stack.enter_context(staged(store, stored, stage_dir)))
    stack.callback(slide.close)
    return OpenedSlide(slide.header(stored), np.zeros(0, TILE_DTYPE), store, slide)


def _what_it_is(head: bytes) -> str:
    for magic, name in ((b"\x89PNG", "a PNG"), (b"\xff\xd8\xff", "a JPEG"), (b"%PDF", "a PDF"),
                        (b"PK\x03\x04", "a ZIP archive"), (b"\x1f\x8b", "a gzip file"),
                        (b"\x89HDF", "an HDF5 file")):  # fmt: skip
        if head.startswith(magic):
            return name
    return f"a file beginning {head[:8]!r}"
