"""A bounded pool of whole slides on a local disk, shared by the processes of a machine.

A slide is a folder named by the digest of its objects and their etags, and by its size. It appears
whole, by a rename. Who reads it holds a shared lock on the folder; what nobody holds may be deleted,
the longest unused first. So a kill at any instant leaves nothing that a later process cannot use or
clear away.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eosin.errors import TransientError, UserError
from eosin.slides.model import SlideObject
from eosin.slides.staging import download, place_in
from eosin.storage import Store

_PART = ".part"
_POLL_S = 0.05
_WAIT_FOR_ROOM_S = 600.0


@dataclass(frozen=True)
class _StagedSlide:
    path: Path
    size_bytes: int
    used_s: float


class StagePool:
    """Copies of slides under `directory`, at most `max_bytes` of them. Safe between threads and processes."""

    def __init__(self, store: Store, directory: Path, max_bytes: int) -> None:
        """Raises `UserError` where `directory` cannot be made or written to.

        The pool keeps a tenth of the free disk free, whatever `max_bytes` says.
        """
        self.store = store
        self.directory = directory
        # Threads that want the same slide at once wait for one download.
        self._stripes = [threading.Lock() for _ in range(64)]
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with self._alone():
                staged = sum(entry.size_bytes for entry in self._entries())
            self.max_bytes = min(max_bytes, int(0.9 * shutil.disk_usage(directory).free) + staged)
        except OSError as error:
            raise UserError(
                f"no slide can be staged in {directory}: {error.strerror}",
                hint="name a folder on a local disk: patches.stage_dir",
            ) from error

    @contextlib.contextmanager
    def use(self, objects: tuple[SlideObject, ...]) -> Iterator[Path]:
        """The folder that holds `objects`, each at `path_in(folder, objects, i)`, kept while in use.

        Raises `ObjectChanged` or `NotFound` where the store no longer has them as the index saw them,
        `UserError` where the slide is larger than the pool or the disk is full.
        """
        folder = self.directory / _name(objects)
        while (lock := _lock(folder, fcntl.LOCK_SH)) is None:
            with self._stripes[hash(folder) % len(self._stripes)]:
                if not folder.exists():
                    self._bring(objects, folder)
        try:
            os.utime(folder)
            yield folder
        finally:
            os.close(lock)

    def _bring(self, objects: tuple[SlideObject, ...], folder: Path) -> None:
        part, lock = self._reserve(folder)
        try:
            for number, each in enumerate(objects):
                path = path_in(part, objects, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                download(self.store, each, path)
            with contextlib.suppress(OSError):  # another process was first
                part.rename(folder)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise UserError(
                    f"the disk under {self.directory} is full", hint="lower patches.stage_bytes"
                ) from error
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
            os.close(lock)

    def _reserve(self, folder: Path) -> tuple[Path, int]:
        """A locked part folder, whose name counts its bytes, once there is room for it."""
        size_bytes = _size_of(folder)
        if size_bytes > self.max_bytes:
            raise UserError(
                f"a slide of {size_bytes} bytes does not fit into the {self.max_bytes} bytes for staging",
                hint="raise patches.stage_bytes, or name a larger disk: patches.stage_dir",
            )
        waited_until_s = time.monotonic() + _WAIT_FOR_ROOM_S
        while True:
            with self._alone():
                if self._make_room(size_bytes):
                    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=_PART, dir=self.directory))
                    lock = _lock(part, fcntl.LOCK_EX)
                    assert lock is not None
                    return part, lock
            if time.monotonic() > waited_until_s:
                raise TransientError(f"no room in {self.directory}: every staged slide is in use")
            time.sleep(_POLL_S)

    def _make_room(self, size_bytes: int) -> bool:
        entries = sorted(self._entries(), key=lambda entry: entry.used_s)
        free = self.max_bytes - sum(entry.size_bytes for entry in entries)
        for entry in entries:
            if free >= size_bytes:
                return True
            if _delete_unused(entry.path):
                free += entry.size_bytes
        return free >= size_bytes

    def _entries(self) -> list[_StagedSlide]:
        found = []
        for path in self.directory.iterdir():
            with contextlib.suppress(OSError, ValueError):
                if path.name.endswith(_PART) and _delete_unused(path):
                    continue  # whoever was filling it is gone
                found.append(_StagedSlide(path, _size_of(path), path.stat().st_mtime))
        return found

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Only one process at a time decides what goes and what comes."""
        with (self.directory / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def path_in(folder: Path, objects: tuple[SlideObject, ...], number: int) -> Path:
    """Where object `number` lies in a staged slide: as beside the first one in the store."""
    return place_in(folder / "slide", objects, number)


def _name(objects: tuple[SlideObject, ...]) -> str:
    text = "\0".join(f"{each.key}\0{each.etag}" for each in objects)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:32]}-{sum(each.size_bytes for each in objects)}"


def _size_of(folder: Path) -> int:
    """The bytes that the folder's name says; ValueError where it is not one of ours."""
    return int(folder.name.split(".")[0].partition("-")[2])


def _lock(folder: Path, kind: int) -> int | None:
    """A descriptor that holds the lock, or None where the folder is gone (or, with LOCK_NB, held)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, kind)
        if os.fstat(descriptor).st_ino == folder.stat().st_ino:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _delete_unused(folder: Path) -> bool:
    lock = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if lock is None:
        return False
    try:
        shutil.rmtree(folder)
        return True
    except OSError:
        return False
    finally:
        os.close(lock)
