"""Any rectangle of a slide, put together from what the package reads of it, to compare with other readers."""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from eosin.index.rows import SlideRow
from eosin.index.snapshot import Snapshot
from eosin.layout import IndexLayout
from eosin.slides.decode import decode_tile
from eosin.slides.header import opened
from eosin.slides.local import LocalSlide, open_local
from eosin.slides.model import TILE_DTYPE, SlideHeader, TileTable
from eosin.slides.region import WHITE, fetch_tiles, parts_of_region, to_level
from eosin.slides.staging import staged
from eosin.slides.table import concatenate, level_table
from eosin.storage import ByteRange, ObjectInfo, Store, open_store

Pixels = npt.NDArray[np.uint8]


class Regions:
    """`read_region` of an open slide, as OpenSlide has it: level-0 corner, sizes of the level."""

    def __init__(self, store: Store, header: SlideHeader, tiles: TileTable) -> None:
        self.store, self.header, self.tiles = store, header, tiles

    def read_region(self, position_px: tuple[int, int], level: int, size_px: tuple[int, int]) -> Pixels:
        """[h, w, 3]; white outside the slide and where a tile is absent."""
        (w, h), found = size_px, self.header.levels[level]
        x, y = (to_level(each, found.downsample) for each in position_px)
        if self.header.access == "local":
            with self._local() as slide:
                whole: Pixels = slide.read_region(*position_px, level, w, h)
                return whole
        rows = level_table(found, self.tiles)
        region = np.full((h, w, 3), WHITE, np.uint8)
        parts = parts_of_region(found, x, y, w, h)
        data = fetch_tiles(self.store, self.header, rows, [part.tile for part in parts])
        for part in parts:
            if data[part.tile]:
                part.of_region(region)[:] = part.of_tile(decode_tile(found, data[part.tile]))
        return region

    @contextlib.contextmanager
    def _local(self) -> Iterator[LocalSlide]:
        with staged(self.store, self.header.objects) as path, contextlib.closing(open_local(path)) as slide:
            yield slide


def tiles_of_level(snapshot: Snapshot, row: SlideRow, level: int) -> TileTable:
    """Tiles of one level, row-major, as published; none of a slide that is read from a file of its own."""
    found = row.header.levels[level]
    if row.header.access == "local":
        return np.zeros(0, TILE_DTYPE)
    width = TILE_DTYPE.itemsize
    place = ByteRange(IndexLayout.tiles(row.digest), width * found.first_tile, width * found.num_tiles)
    return np.frombuffer(snapshot.store.get_ranges([place])[0], TILE_DTYPE, count=found.num_tiles)


def all_tiles(snapshot: Snapshot, row: SlideRow) -> TileTable:
    """The whole tile table of a slide."""
    return concatenate([tiles_of_level(snapshot, row, i) for i in range(len(row.header.levels))])


def regions_of(snapshot: Snapshot, row: SlideRow) -> Regions:
    """An indexed slide, open."""
    return Regions(open_store(snapshot.slides_uri), row.header, all_tiles(snapshot, row))


def read_header(store: Store, objects: Sequence[ObjectInfo]) -> tuple[SlideHeader, TileTable]:
    """Header and tile table of the slide that `objects` make up, a staged copy closed again."""
    with opened(store, objects) as slide:
        return slide.header, slide.tiles
