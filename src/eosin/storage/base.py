"""Protocol of an object store: ranged reads and whole, conditional publishes; its errors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from eosin.errors import UserError


@dataclass(frozen=True)
class ObjectInfo:
    """One object. `key` is relative to the store's root; `etag` changes whenever the bytes do."""

    key: str
    size_bytes: int
    etag: str
    modified_s: float


class ByteRange(NamedTuple):
    """Bytes [start, start + length) of `key`; `etag` pins the version read (None: any)."""

    key: str
    start: int
    length: int
    etag: str | None = None


class NotFound(KeyError):
    """The object does not exist (the bucket does)."""


class PreconditionFailed(Exception):
    """A conditional put lost: the object exists (if_none_match) or has changed (if_match)."""


class ObjectChanged(Exception):
    """A pinned read met another version of the object."""


class AccessDenied(UserError):
    """The credentials are good, but give no right to this object or prefix."""


class RangedObjects(Protocol):
    """Objects, or one of them, read by byte range."""

    def get_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """All `ranges` at once, in order, each exactly `length` bytes (short only at the object's end)."""
        ...


@runtime_checkable
class Store(RangedObjects, Protocol):
    """A folder of objects at one URI. Thread-safe. Every method retries what is transient.

    Errors: `NotFound`, `PreconditionFailed`, `ObjectChanged` for a caller to act on; `UserError`
    (wrong key, missing bucket; names bucket, key and operation), `AccessDenied` among them where only
    the right is missing; `TransientError` after the retries are spent.
    """

    uri: str

    def get(self, key: str) -> bytes:
        """The whole object. Raises `NotFound`."""
        ...

    def head(self, key: str) -> ObjectInfo:
        """Size, etag and time of an object, without its bytes. Raises `NotFound`."""
        ...

    def exists(self, key: str) -> bool:
        """Whether an object is at `key`."""
        try:
            self.head(key)
        except NotFound:
            return False
        return True

    def put(
        self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None
    ) -> ObjectInfo:
        """Publish `data` whole: a reader sees all of it or the object before it, never a part."""
        ...

    def put_file(self, key: str, path: Path, *, if_none_match: bool = False) -> ObjectInfo:
        """Publish a local file whole, in parts where it is large."""
        ...

    def download(self, key: str, path: Path) -> ObjectInfo:
        """Bring one object to `path`, which appears whole or not at all."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, in key order."""
        ...

    def folders(self, prefix: str = "") -> Iterator[str]:
        """Names of the folders right under `prefix` (empty, or ending in `/`), sorted."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; one that is not there is no error."""
        ...


def put_if_absent(store: Store, key: str, data: bytes | Path) -> bool:
    """Publish bytes or a local file at `key` unless an object is there; whether this publish made it.

    Of several at once exactly one gets True. Raises as `Store` does.
    """
    try:
        if isinstance(data, Path):
            store.put_file(key, data, if_none_match=True)
        else:
            store.put(key, data, if_none_match=True)
    except PreconditionFailed:
        return False
    return True
