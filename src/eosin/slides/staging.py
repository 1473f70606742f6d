"""Staging: a slide's objects on a local disk, side by side as they lay in the store."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from eosin.errors import TransientError, UserError
from eosin.slides.errors import absent_or_changed
from eosin.slides.model import SlideObject
from eosin.storage import NotFound, ObjectChanged, Store

_DOWNLOADS = 5
_SPARE_BYTES = 64 * 2**20
_DISK_TROUBLE = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.ENOENT)


@contextmanager
def staged(store: Store, objects: Sequence[SlideObject], folder: str | Path | None = None) -> Iterator[Path]:
    """The local path of the slide's first object, in a temporary folder that is gone afterwards.

    `folder`: where the temporary folder is made (None: the system's). Raises `UserError` where the disk
    is full or not writable.
    """
    where = folder or tempfile.gettempdir()
    try:
        if not room_for(objects, where):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with tempfile.TemporaryDirectory(prefix="eosin-stage-", dir=folder) as temporary:
            yield stage(store, objects, Path(temporary))
    except OSError as error:
        if error.errno not in _DISK_TROUBLE:
            raise
        raise UserError(
            f"cannot stage {objects[0].key} in {where}: {error.strerror}",
            hint="set patches.stage_dir to a disk with room for the largest slide",
        ) from error


def stage(store: Store, objects: Sequence[SlideObject], folder: Path) -> Path:
    """Download `objects` under `folder`, keeping their relative places; the first one's local path.

    Raises `SlideError` (`changed`, `missing`) where an object is no longer the one listed, `TransientError`
    where it keeps coming short.
    """
    for number, each in enumerate(objects):
        target = place_in(folder, objects, number)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            download(store, each, target)
        except (NotFound, ObjectChanged) as error:
            raise absent_or_changed(each.key, error) from error
    return place_in(folder, objects, 0)


def download(store: Store, each: SlideObject, target: Path) -> None:
    """Only the listing knows how long the object must be: an answer cut short can agree with itself.

    Raises `ObjectChanged` where it is no longer the one listed, `TransientError` where it keeps coming short.
    """
    for _ in range(_DOWNLOADS):
        if store.download(each.key, target).etag != each.etag:
            raise ObjectChanged(each.key)
        num_bytes = target.stat().st_size
        if num_bytes == each.size_bytes:
            return
    raise TransientError(f"{each.key} came short {_DOWNLOADS} times: {num_bytes} of {each.size_bytes} bytes")


def place_in(folder: Path, objects: Sequence[SlideObject], number: int) -> Path:
    """Where object `number` of a slide lies below `folder`: as beside the first one in the store.

    Levels of a DICOM slide may lie in any folder. The first one's suffix is in small letters: OpenSlide knows
    `.mrxs` by no other. Raises `UserError` for a key that leaves its folder.
    """
    first, key = PurePosixPath(objects[0].key), PurePosixPath(objects[number].key)
    if number == 0:
        return folder / first.with_suffix(first.suffix.lower()).name
    if not key.is_relative_to(first.parent):
        return folder / str(number) / key.name
    relative = key.relative_to(first.parent)
    if ".." in relative.parts:
        raise UserError(f"object key {key} leaves its folder")
    return folder / relative


def room_for(objects: Sequence[SlideObject], folder: str | Path) -> bool:
    """Whether the disk has room for the slide, with a little to spare."""
    return shutil.disk_usage(folder).free > sum(each.size_bytes for each in objects) + _SPARE_BYTES
