"""Store in a folder of the local file system."""

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from eosin.errors import UserError
from eosin.storage.atomic import is_temporary, locked, new_file, publish_new, remove_stale, settle, translate
from eosin.storage.base import ByteRange, NotFound, ObjectChanged, ObjectInfo, PreconditionFailed, Store
from eosin.storage.uri import Location


class FileStore(Store):
    """Objects are files under `root`; a key's slashes are folders. See `Store` for the methods.

    The etag is made of size and modification time in nanoseconds. Publishing goes through a temporary
    file and a rename under a lock on the folder, so conditional puts hold among processes of a machine.
    Anything that the file system refuses is a `UserError` that names the path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = Location("file", "", str(root)).uri

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with _reading(path, key):
            return path.read_bytes()

    def get_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        results: list[bytes] = [b""] * len(ranges)
        by_key: dict[str, list[int]] = {}
        for position, item in enumerate(ranges):
            by_key.setdefault(item.key, []).append(position)
        for key, positions in by_key.items():
            path = self._path(key)
            with _reading(path, key), path.open("rb", buffering=0) as file:
                # Asked of the open file: a rename meanwhile cannot slip another version in.
                etag = _info_of(key, os.fstat(file.fileno())).etag
                for position in positions:
                    item = ranges[position]
                    if item.etag not in (None, etag):
                        raise ObjectChanged(f"{key} is not the version {item.etag}")
                    results[position] = _read_range(file.fileno(), item)
        return results

    def head(self, key: str) -> ObjectInfo:
        path = self._path(key)
        with _reading(path, key):
            return _info(key, path)

    def put(
        self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None
    ) -> ObjectInfo:
        return self._publish(key, lambda file: file.write(data), if_none_match, if_match)

    def put_file(self, key: str, path: Path, *, if_none_match: bool = False) -> ObjectInfo:
        def copy(file: BinaryIO) -> None:
            with open_source(path) as source:
                shutil.copyfileobj(source, file, 1 << 20)

        return self._publish(key, copy, if_none_match, None)

    def download(self, key: str, path: Path) -> ObjectInfo:
        source_path = self._path(key)
        with new_file(path) as (file, temporary):
            with _reading(source_path, key), source_path.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
                info = _info_of(key, os.fstat(source.fileno()))
            settle(file)
            temporary.replace(path)
        return info

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Hidden unfinished publishes are left out; a folder that is not there is an empty one."""
        folder, _, start = prefix.rpartition("/")
        base = self._path(folder) if folder else self.root
        yield from _walk(base, f"{folder}/" if folder else "", start)

    def folders(self, prefix: str = "") -> Iterator[str]:
        folder = self._path(prefix.rstrip("/")) if prefix else self.root
        yield from (name for sort_key, name in _entries(folder, "") if sort_key.endswith(b"/"))

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            path = self._path(key)
            try:
                path.unlink(missing_ok=True)
            except NotADirectoryError:
                continue
            except OSError as error:
                raise translate(error, "delete", path) from error

    def remove_unfinished(self, *, older_than_s: float) -> Sequence[str]:
        """Remove what killed publishes have left behind; returns the paths."""
        return [str(path) for path in remove_stale(self.root, older_than_s=older_than_s)]

    def _publish(
        self,
        key: str,
        write: Callable[[BinaryIO], object],
        if_none_match: bool,
        if_match: str | None,
    ) -> ObjectInfo:
        path = self._path(key)
        with new_file(path) as (file, temporary):
            write(file)
            settle(file)
            info = _info_of(key, os.fstat(file.fileno()))
            with locked(path.parent):
                _check_match(path, key, if_match)
                _move(temporary, path, key, new=if_none_match)
        return info

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if not key or "\0" in key or any(part in ("", ".", "..") for part in parts):
            raise UserError(
                f"{self.uri}: {key!r} cannot name a file", hint="no empty, `.` or `..` parts in a key"
            )
        return self.root.joinpath(*parts)


@contextmanager
def _reading(path: Path, key: str) -> Iterator[None]:
    """Turns what `OSError` means for a read of `path` into `NotFound` or an error that names it."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise NotFound(key) from None
    except OSError as error:
        raise translate(error, "read", path) from error


def open_source(path: Path) -> BinaryIO:
    """A local file to publish. Raises `UserError` that names it where it cannot be read."""
    try:
        return path.open("rb")
    except OSError as error:
        raise translate(error, "read", path) from error


def _check_match(path: Path, key: str, if_match: str | None) -> None:
    if if_match is None:
        return
    try:
        now = _info(key, path).etag
    except FileNotFoundError:
        now = None
    if now != if_match:
        raise PreconditionFailed(f"{path} is not the version {if_match}")


def _move(temporary: Path, path: Path, key: str, *, new: bool) -> None:
    if not new:
        temporary.replace(path)
        return
    try:
        publish_new(temporary, path)
    except FileExistsError:
        raise PreconditionFailed(f"{path} exists") from None


def _read_range(file: int, item: ByteRange) -> bytes:
    data = os.pread(file, item.length, item.start)
    while 0 < len(data) < item.length:
        more = os.pread(file, item.length - len(data), item.start + len(data))
        if not more:
            break
        data += more
    return data


def _info(key: str, path: Path) -> ObjectInfo:
    """Raises FileNotFoundError for what is no plain file: a folder, a pipe (which would block), a link in
    a circle."""
    if not path.is_file():
        raise FileNotFoundError(str(path))
    return _info_of(key, path.stat())


def _info_of(key: str, stat: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, stat.st_size, f"{stat.st_size:x}-{stat.st_mtime_ns:x}", stat.st_mtime)


def _walk(folder: Path, prefix: str, start: str, above: frozenset[str] = frozenset()) -> Iterator[ObjectInfo]:
    """Links are followed, but not to a folder that the walk is in already."""
    here = os.path.realpath(folder)
    if here in above:
        return
    for sort_key, entry in _entries(folder, start):
        path = folder / entry
        if sort_key.endswith(b"/"):
            yield from _walk(path, f"{prefix}{entry}/", "", above | {here})
            continue
        try:
            yield _info(prefix + entry, path)
        except FileNotFoundError:
            continue  # deleted since the folder was read, or a dangling link
        except OSError as error:
            raise translate(error, "read", path) from error


def _entries(folder: Path, start: str) -> list[tuple[bytes, str]]:
    """Names in `folder` that begin with `start`, in the byte order of the keys they lead to."""
    try:
        with os.scandir(folder) as entries:
            found = [
                (os.fsencode(entry.name) + (b"/" if _is_folder(entry) else b""), entry.name)
                for entry in entries
                if entry.name.startswith(start) and not is_temporary(entry.name) and _is_text(entry)
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise translate(error, "list", folder) from error
    return sorted(found)


def _is_text(entry: os.DirEntry[str]) -> bool:
    """Whether the name can be a key. One that is not UTF-8 is passed over, and said."""
    if entry.name.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in entry.name):
        return True
    shown = os.fsencode(entry.path).decode(errors="backslashreplace")
    warnings.warn(f"{shown} is passed over: its name is not UTF-8", UserWarning, stacklevel=2)
    return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False
