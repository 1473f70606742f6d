"""A store that counts what is asked of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from eosin.storage import ByteRange, ObjectInfo, Store


class CountingStore:
    """Passes everything on to `inner`, and remembers reads by key and how often the store was listed."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.uri = inner.uri
        self.ranges: list[ByteRange] = []
        self.gets: list[str] = []
        self.downloads: list[str] = []
        self.puts: list[str] = []
        self.num_listings = 0

    def reads_of(self, key: str) -> tuple[int, int]:
        """(ranges, bytes) read of one object."""
        found = [each for each in self.ranges if each.key == key]
        return len(found), sum(each.length for each in found)

    def get(self, key: str) -> bytes:
        self.gets.append(key)
        return self._inner.get(key)

    def get_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        self.ranges += ranges
        return self._inner.get_ranges(ranges)

    def folders(self, prefix: str = "") -> Iterator[str]:
        self.num_listings += 1
        return self._inner.folders(prefix)

    def head(self, key: str) -> ObjectInfo:
        return self._inner.head(key)

    def exists(self, key: str) -> bool:
        return self._inner.exists(key)

    def put(
        self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None
    ) -> ObjectInfo:
        self.puts.append(key)
        return self._inner.put(key, data, if_none_match=if_none_match, if_match=if_match)

    def put_file(self, key: str, path: Path, *, if_none_match: bool = False) -> ObjectInfo:
        self.puts.append(key)
        return self._inner.put_file(key, path, if_none_match=if_none_match)

    def download(self, key: str, path: Path) -> ObjectInfo:
        self.downloads.append(key)
        return self._inner.download(key, path)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self.num_listings += 1
        return self._inner.list(prefix)

    def delete(self, keys: Sequence[str]) -> None:
        self._inner.delete(keys)
