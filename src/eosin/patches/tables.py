"""Where tiles lie, without ever holding all tile tables: 30,000 slides have some 35 GB of them."""

from __future__ import annotations

from collections.abc import Iterable

from eosin.index.snapshot import Snapshot
from eosin.patches.cache import ArrayCache
from eosin.patches.reading import TileKey
from eosin.patches.sources import TileBytes
from eosin.slides.model import TileTable

_CACHE_BYTES = 64 * 2**20


class TileTables:
    """Looks tiles up in the snapshot's tables, keeping the ones used last."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._cache: ArrayCache[tuple[int, int], TileTable] = ArrayCache(_CACHE_BYTES)

    def locate(self, tiles: Iterable[TileKey]) -> list[TileBytes]:
        """Where the bytes of each tile lie; `size_bytes` 0 for one that holds nothing."""
        found = []
        for key in tiles:
            offset, size_bytes, number = self._table(key.slide, key.level)[key.tile].tolist()
            objects = self.snapshot.rows[key.slide].header.objects
            found.append(TileBytes(objects, int(number), int(offset), int(size_bytes)))
        return found

    def _table(self, slide: int, level: int) -> TileTable:
        table = self._cache.get((slide, level))
        if table is None:
            table = self.snapshot.load_tiles(self.snapshot.rows[slide], level)
            self._cache.put((slide, level), table)
        return table
