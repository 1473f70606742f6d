"""Atomic files: local files that appear whole or not at all."""

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from eosin.errors import EosinError, TransientError, UserError
from eosin.storage.base import AccessDenied

_TEMPORARY_PREFIX = ".eosin-tmp-"
_TRANSIENT = {
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.EINTR,
    errno.ENOLCK,
    errno.ENFILE,
    errno.EMFILE,
}
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


def is_temporary(name: str) -> bool:
    """Whether a file of this name is an unfinished publish."""
    return name.startswith(_TEMPORARY_PREFIX)


@contextmanager
def new_file(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A temporary file beside `target`, flushed to disk at the end of the block, removed afterwards.

    The caller moves it into place after writing. `OSError` becomes an `EosinError` that names the path.
    """
    temporary = target.parent / f"{_TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file, temporary
    except OSError as error:
        raise translate(error, "write", target) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def settle(file: BinaryIO) -> None:
    """Bring what was written to disk, and give it a modification time that no other version has.

    The kernel stamps files with its tick (milliseconds), too coarse to tell two quick versions apart.
    """
    file.flush()
    now_ns = time.time_ns() // 1000 * 1000 + secrets.randbelow(1000)
    os.utime(file.fileno(), ns=(now_ns, now_ns))
    os.fsync(file.fileno())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Exclusive among the processes and threads that publish into `folder`; released by the kernel."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        # The rename itself must outlive a power cut, not only the bytes.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_new(temporary: Path, target: Path) -> None:
    """Move `temporary` to `target` unless something is there. Raises `FileExistsError`.

    Call it under `locked(target.parent)`, which is what protects file systems without hard links.
    """
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, "exists", str(target)) from None
        temporary.rename(target)


def remove_stale(folder: Path, *, older_than_s: float) -> list[Path]:
    """Remove what publishes that were killed have left under `folder`; returns the paths removed."""
    removed = []
    limit_s = time.time() - older_than_s
    for path in folder.rglob(f"{_TEMPORARY_PREFIX}*"):
        with suppress(OSError):
            if path.stat().st_mtime < limit_s:
                path.unlink()
                removed.append(path)
    return removed


def translate(error: OSError, operation: str, path: Path) -> EosinError:
    """The eosin error for what the operating system refused, naming the path."""
    reason = error.strerror or str(error)
    message = f"cannot {operation} {path}: {reason}"
    if error.errno in _TRANSIENT:
        return TransientError(message)
    kind = AccessDenied if error.errno in (errno.EACCES, errno.EPERM) else UserError
    return kind(message, hint=_HINTS.get(error.errno or 0, ""))


_HINTS = {
    errno.ENOSPC: "free some space on that disk, or take another folder",
    errno.EDQUOT: "your quota on that disk is used up",
    errno.EFBIG: "the file is larger than the limit (`ulimit -f`) or the file system allows",
    errno.EACCES: "check the permissions of the folder and of those above it",
    errno.EPERM: "check the permissions of the folder and of those above it",
    errno.EROFS: "the file system is read-only: take another folder",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.EISDIR: "a folder stands where a file is needed",
    errno.ENAMETOOLONG: "take a shorter name",
}
