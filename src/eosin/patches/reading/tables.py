"""Tile-table look-ups without holding all tables: 30,000 slides have some 35 GB of them."""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from eosin.errors import PermanentError
from eosin.index.snapshot import Snapshot
from eosin.layout import IndexLayout
from eosin.patches.reading.read_plan import TileKey
from eosin.patches.reading.sources import TileBytes
from eosin.slides.model import TILE_DTYPE, TileTable
from eosin.storage import ByteRange, NotFound

K = TypeVar("K", bound=Hashable)
Array = npt.NDArray[np.generic]
A = TypeVar("A", bound=Array)


class ArrayCache(Generic[K, A]):
    """Arrays by key, at most `max_bytes` of them. Thread-safe. What it returns must not be written to."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._arrays: OrderedDict[K, A] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> A | None:
        """The array of `key`, which counts as used now; None where it is not held."""
        with self._lock:
            found = self._arrays.get(key)
            if found is not None:
                self._arrays.move_to_end(key)
            return found

    def put(self, key: K, array: A) -> None:
        """Keep `array`, dropping the longest unused; one larger than the whole cache is not kept."""
        with self._lock:
            if key in self._arrays or array.nbytes > self.max_bytes:
                return
            self._arrays[key] = array
            self.num_bytes += array.nbytes
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self._arrays.popitem(last=False)[1].nbytes


_CACHE_BYTES = 64 * 2**20
# The table of a level with more tiles (96 kB) is not read whole: a patch needs a few rows of it.
_WHOLE_UP_TO_TILES = 6144
_ROW_BYTES = TILE_DTYPE.itemsize
_LevelKey = tuple[int, int]


class TileTables:
    """Looks tiles up in the tables: small ones are read whole and kept, large ones by row. Thread-safe."""

    def __init__(self, snapshot: Snapshot, *, whole_up_to_tiles: int = _WHOLE_UP_TO_TILES) -> None:
        self.snapshot = snapshot
        self._whole_up_to_tiles = whole_up_to_tiles
        self._cache: ArrayCache[_LevelKey, TileTable] = ArrayCache(_CACHE_BYTES)

    def locate(self, tiles: Sequence[TileKey]) -> list[TileBytes]:
        """Where the bytes of each tile lie; `size_bytes` 0 for one that holds nothing.

        Raises `PermanentError` where a published table is damaged.
        """
        kept = self._kept(dict.fromkeys((key.slide, key.level) for key in tiles))
        rows = self.rows_read(tiles) if any(table is None for table in kept.values()) else ()
        singles = iter(self._read(rows) if rows else ())
        found, of, table = [], (-1, -1), None
        for key in tiles:
            if (key.slide, key.level) != of:  # those of a patch follow one another
                of, objects = (key.slide, key.level), self.snapshot.rows[key.slide].header.objects
                table = kept[of]
            offset, size_bytes, number = (next(singles)[0] if table is None else table[key.tile]).tolist()
            found.append(TileBytes(objects, number, offset, size_bytes))
        return found

    def rows_read(self, tiles: Sequence[TileKey]) -> list[ByteRange]:
        """What `locate` reads each time: rows of tables too large to be kept."""
        return [self._range_of(key, key.tile, 1) for key in tiles if self._is_large(key[:2])]

    def _is_large(self, of: _LevelKey) -> bool:
        return self.snapshot.rows[of[0]].header.levels[of[1]].num_tiles > self._whole_up_to_tiles

    def _kept(self, levels: Iterable[_LevelKey]) -> dict[_LevelKey, TileTable | None]:
        """The table of each level, None for one too large; those that are not held yet are read together."""
        tables = {of: self._cache.get(of) for of in levels}
        missing = [of for of, table in tables.items() if table is None and not self._is_large(of)]
        ranges = []
        for of in missing:
            num_tiles = self.snapshot.rows[of[0]].header.levels[of[1]].num_tiles
            ranges.append(self._range_of(of, 0, num_tiles))
        for of, table in zip(missing, self._read(ranges) if ranges else (), strict=True):
            self._cache.put(of, table)
            tables[of] = table
        return tables

    def _read(self, ranges: Sequence[ByteRange]) -> list[TileTable]:
        """Parts of tables, all in one batch; neighbours share a request."""
        try:
            data = self.snapshot.store.get_ranges(ranges)
        except NotFound as error:
            raise self._damaged(str(error)) from error
        for wanted, part in zip(ranges, data, strict=True):
            if len(part) != wanted.length:
                raise self._damaged(f"{wanted.key} is too short")
        return [np.frombuffer(part, TILE_DTYPE) for part in data]

    def _range_of(self, of: Sequence[int], first: int, num: int) -> ByteRange:
        """Where `num` rows lie, from that of tile `first` of a level on; `of` begins with slide and level."""
        row = self.snapshot.rows[of[0]]
        start = row.header.levels[of[1]].first_tile + first
        return ByteRange(IndexLayout.tiles(row.digest), start * _ROW_BYTES, num * _ROW_BYTES)

    def _damaged(self, why: str) -> PermanentError:
        return PermanentError(
            f"a tile table of the index {self.snapshot.store.uri} cannot be read: {why}",
            hint="run `eosin index` again with a new index URI",
        )
