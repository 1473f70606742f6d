"""Seekable file over ranged reads of one object, for libraries that read headers."""

import io
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from eosin.storage.base import ByteRange, ObjectChanged, Store

if TYPE_CHECKING:
    from typing_extensions import Buffer


BLOCK_BYTES = 65536
_MOST_AHEAD = 16


class RangeFile(io.RawIOBase):
    """Read-only view of `key`, fetched in aligned blocks of `block_bytes`, of which the `max_blocks` last
    used are kept (16 MiB by default).

    A read asks for all the blocks it lacks in one call; a read longer than the cache goes past it.
    `num_requests` counts the spans asked for, `num_bytes` their bytes. `etag` pins the version: every
    read raises `ObjectChanged` once the object is another. `head`: its first block, where that was read.
    Not thread-safe, as files are not.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        size_bytes: int,
        etag: str | None = None,
        block_bytes: int = BLOCK_BYTES,
        max_blocks: int = 256,
        head: bytes = b"",
    ) -> None:
        super().__init__()
        self.name = key
        self.size_bytes = size_bytes
        self.num_requests = 0
        self.num_bytes = 0
        self._store, self._key, self._etag = store, key, etag
        self._block_bytes, self._max_blocks = block_bytes, max_blocks
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        if len(head) == min(block_bytes, size_bytes):
            self._blocks[0] = head
        self._position = 0
        self._next, self._ahead = -1, 1

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size_bytes}[whence]
        if origin + offset < 0:
            raise ValueError(f"{self._key}: seek to {origin + offset}, before the start")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: "Buffer") -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes from the position on (all that are left where negative)."""
        if self.closed:
            raise ValueError(f"{self._key}: read of a closed file")
        left = max(0, self.size_bytes - self._position)
        length = left if size < 0 else min(size, left)
        data = self._bytes_at(self._position, length) if length else b""
        self._position += length
        return data

    def readall(self) -> bytes:
        return self.read()

    def prefetch(self, start: int, *others: int) -> None:
        """Bring the blocks at these places and those behind them, in one call; none where `start` is held."""
        if start // self._block_bytes in self._blocks:
            return
        blocks = {each // self._block_bytes + i for each in (start, *others) for i in (0, 1)}
        last = (self.size_bytes - 1) // self._block_bytes
        self._fill(sorted(each for each in blocks - self._blocks.keys() if 0 <= each <= last))

    def get_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """As `Store.get_ranges`; what lies in blocks that are held is not asked for again."""
        held = {number: self._held(each) for number, each in enumerate(ranges)}
        absent = [number for number, data in held.items() if data is None]
        if absent:
            held |= zip(absent, self._store.get_ranges([ranges[i] for i in absent]), strict=True)
        return [data or b"" for data in held.values()]

    def _bytes_at(self, start: int, length: int) -> bytes:
        first, last = start // self._block_bytes, (start + length - 1) // self._block_bytes
        if last - first + 1 > self._max_blocks:
            return self._fetch([(start, length)])[0]
        self._load([block for block in range(first, last + 1) if block not in self._blocks])
        for block in range(first, last + 1):
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)
        return self._cut(first, last, start, length)

    def _cut(self, first: int, last: int, start: int, length: int) -> bytes:
        offset = start - first * self._block_bytes
        if first == last:
            return self._blocks[first][offset : offset + length]
        return b"".join(self._blocks[block] for block in range(first, last + 1))[offset : offset + length]

    def _held(self, wanted: ByteRange) -> bytes | None:
        start, length = wanted.start, wanted.length
        first, last = start // self._block_bytes, (start + length - 1) // self._block_bytes
        same = (wanted.key, wanted.etag) == (self._key, self._etag)
        if same and all(block in self._blocks for block in range(first, last + 1)):
            return self._cut(first, last, start, length)
        return None

    def _load(self, missing: list[int]) -> None:
        """Blocks, and where they are read one after another ever more of those that follow."""
        if not missing:
            return
        self._ahead = min(2 * self._ahead, _MOST_AHEAD) if missing[0] == self._next else 1
        end = min(missing[0] + self._ahead, -(-self.size_bytes // self._block_bytes))
        self._fill(sorted({*missing, *range(missing[0], end)} - self._blocks.keys()))
        self._next = max(missing[-1] + 1, end)

    def _fill(self, missing: list[int]) -> None:
        spans = [
            (first * self._block_bytes, (last - first + 1) * self._block_bytes)
            for first, last in _runs(missing)
        ]
        spans = [(start, min(length, self.size_bytes - start)) for start, length in spans]
        for (start, _), data in zip(spans, self._fetch(spans), strict=True):
            for offset in range(0, len(data), self._block_bytes):
                block = (start + offset) // self._block_bytes
                self._blocks[block] = data[offset : offset + self._block_bytes]

    def _fetch(self, spans: list[tuple[int, int]]) -> list[bytes]:
        if not spans:
            return []
        self.num_requests += len(spans)
        self.num_bytes += sum(length for _, length in spans)
        ranges = [ByteRange(self._key, start, length, self._etag) for start, length in spans]
        pieces = self._store.get_ranges(ranges)
        for (start, length), piece in zip(spans, pieces, strict=True):
            if len(piece) != length:
                raise ObjectChanged(
                    f"{self._store.uri}/{self._key} ends before byte {start + length}, though it had "
                    f"{self.size_bytes} bytes"
                )
        return pieces


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Ascending `numbers` as (first, last) of each run of neighbours."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
