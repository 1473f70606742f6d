"""Tile-table look-ups without holding all tables: 30,000 slides have some 35 GB of them."""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
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
_Place = tuple[int, int, int]


class TileTables:
    """Looks tiles up in the tables: small ones are read whole and kept, large ones by row. Thread-safe."""

    def __init__(self, snapshot: Snapshot, *, whole_up_to_tiles: int = _WHOLE_UP_TO_TILES) -> None:
        self.snapshot = snapshot
        self._whole_up_to_tiles = whole_up_to_tiles
        self._cache: ArrayCache[tuple[int, int], TileTable] = ArrayCache(_CACHE_BYTES)

    def locate(self, tiles: Sequence[TileKey]) -> list[TileBytes]:
        """Where the bytes of each tile lie; `size_bytes` 0 for one that holds nothing.

        Raises `PermanentError` where a published table is damaged.
        """
        large = [key for key in tiles if self._is_large(key)]
        places = dict(zip(large, self._read_rows(large), strict=True)) if large else {}
        found, of, table = [], (-1, -1), None
        for key in tiles:
            if (key.slide, key.level) != of:  # those of a patch follow one another
                of, objects = (key.slide, key.level), self.snapshot.rows[key.slide].header.objects
                table = None if key in places else self._whole(key.slide, key.level)
            offset, size_bytes, number = places[key] if table is None else table[key.tile].tolist()
            found.append(TileBytes(objects, number, offset, size_bytes))
        return found

    def rows_read(self, tiles: Sequence[TileKey]) -> list[ByteRange]:
        """What `locate` reads each time: rows of tables too large to be kept."""
        return [self._range_of(key) for key in tiles if self._is_large(key)]

    def _is_large(self, key: TileKey) -> bool:
        return self.snapshot.rows[key.slide].header.levels[key.level].num_tiles > self._whole_up_to_tiles

    def _whole(self, slide: int, level: int) -> TileTable:
        table = self._cache.get((slide, level))
        if table is None:
            table = self.snapshot.load_tiles(self.snapshot.rows[slide], level)
            self._cache.put((slide, level), table)
        return table

    def _read_rows(self, keys: list[TileKey]) -> list[_Place]:
        """Single rows of tables, all in one batch; neighbours share a request."""
        ranges = [self._range_of(key) for key in keys]
        try:
            data = self.snapshot.store.get_ranges(ranges)
        except NotFound as error:
            raise self._damaged(str(error)) from error
        if any(len(row) != _ROW_BYTES for row in data):
            raise self._damaged("it is too short")
        places: list[_Place] = [np.frombuffer(row, TILE_DTYPE)[0].tolist() for row in data]
        return places

    def _range_of(self, key: TileKey) -> ByteRange:
        row = self.snapshot.rows[key.slide]
        number = row.header.levels[key.level].first_tile + key.tile
        return ByteRange(IndexLayout.tiles(row.digest), number * _ROW_BYTES, _ROW_BYTES)

    def _damaged(self, why: str) -> PermanentError:
        return PermanentError(
            f"a tile table of the index {self.snapshot.store.uri} cannot be read: {why}",
            hint="run `eosin index` again with a new index URI",
        )
