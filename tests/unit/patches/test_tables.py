"""Tile tables: the same places whether read whole or row by row, and never all in memory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eosin.errors import PermanentError
from eosin.index.snapshot import Snapshot
from eosin.layout import IndexLayout
from eosin.patches.reading.read_plan import TileKey
from eosin.patches.reading.tables import ArrayCache, TileTables
from eosin.slides.model import TILE_DTYPE
from eosin.storage import ByteRange
from tests.support.patches import paper_header, paper_row, paper_snapshot


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    rows = [paper_row(f"{i}.svs", paper_header(4800, 4800)) for i in range(3)]
    made = paper_snapshot(tmp_path, rows)
    for number, row in enumerate(made.rows):
        table = np.zeros(sum(level.num_tiles for level in row.header.levels), TILE_DTYPE)
        table["offset"] = np.arange(len(table)) * 1000 + number
        table["size_bytes"] = np.arange(len(table)) % 7
        made.store.put(IndexLayout.tiles(row.digest), table.tobytes())
    return made


KEYS = [TileKey(0, 0, 399, 1), TileKey(2, 1, 0, 2), TileKey(0, 0, 398, 1), TileKey(1, 2, 1, 1)]


def test_rows_are_the_same_whether_read_singly_or_whole(snapshot: Snapshot) -> None:
    whole, single, mixed = (TileTables(snapshot, whole_up_to_tiles=n).locate(KEYS) for n in (10_000, 0, 30))
    assert whole == single == mixed
    assert [place.offset for place in whole] == [399_000, 400_002, 398_000, 426_001]
    assert whole[1].size_bytes == 400 % 7 and whole[0].stored == snapshot.rows[0].header.objects[0]


@pytest.mark.parametrize("whole_up_to_tiles", [0, 30, 10_000])
def test_what_is_not_held_is_read_together(
    snapshot: Snapshot, whole_up_to_tiles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    read = snapshot.store.get_ranges

    def get_ranges(ranges: Sequence[ByteRange]) -> list[bytes]:
        asked.append(len(ranges))
        return read(ranges)

    monkeypatch.setattr(snapshot.store, "get_ranges", get_ranges)
    tables = TileTables(snapshot, whole_up_to_tiles=whole_up_to_tiles)
    first, again = tables.locate(KEYS), tables.locate(KEYS)
    assert first == again
    # Of the three levels all are kept, or the two of at most 25 tiles, or none.
    assert asked == {10_000: [3], 30: [2, 2, 2], 0: [4, 4]}[whole_up_to_tiles]


@pytest.mark.parametrize("whole_up_to_tiles", [0, 10_000])
def test_a_damaged_table_is_named(snapshot: Snapshot, whole_up_to_tiles: int) -> None:
    key = IndexLayout.tiles(snapshot.rows[0].digest)
    snapshot.store.put(key, b"\0" * 100)
    with pytest.raises(PermanentError, match="tile table"):
        TileTables(snapshot, whole_up_to_tiles=whole_up_to_tiles).locate(KEYS)
    snapshot.store.delete([key])
    with pytest.raises(PermanentError, match="tile table"):
        TileTables(snapshot, whole_up_to_tiles=whole_up_to_tiles).locate(KEYS)


def test_the_cache_drops_the_longest_unused_and_keeps_nothing_too_large() -> None:
    cache: ArrayCache[int, np.ndarray] = ArrayCache(1000)
    for key in range(3):
        cache.put(key, np.zeros(400, np.uint8))
        cache.get(0)
    cache.put(9, np.zeros(1001, np.uint8))
    assert [cache.get(key) is not None for key in (0, 1, 2, 9)] == [True, False, True, False]
    assert cache.num_bytes == 800
