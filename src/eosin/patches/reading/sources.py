"""Two ways to the bytes of tiles, one interface: ranged reads from the store, or a staged copy."""

import os
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from eosin.patches.reading.stage import StagePool, path_in
from eosin.slides.errors import SlideError, absent_or_changed
from eosin.slides.model import SlideObject
from eosin.storage import ByteRange, NotFound, ObjectChanged, Store


class TileBytes(NamedTuple):
    """Where the bytes of one tile lie: in object `object` of a slide's `objects`."""

    objects: tuple[SlideObject, ...]
    object: int
    offset: int
    size_bytes: int

    @property
    def stored(self) -> SlideObject:
        """The object that holds the tile."""
        return self.objects[self.object]


class ByteSource(Protocol):
    """A way to the bytes of tiles."""

    def fetch(self, tiles: Sequence[TileBytes]) -> list[bytes | SlideError]:
        """The bytes of each tile, or why its slide cannot give them (reason `changed` or `missing`).

        Trouble of the whole store is raised: `TransientError`, `UserError`.
        """
        ...


class RangeSource:
    """Tiles by byte range, pinned to the etags of the index; neighbours share a request."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def fetch(self, tiles: Sequence[TileBytes]) -> list[bytes | SlideError]:
        """As `ByteSource`."""
        ranges = []
        for objects, number, offset, size_bytes in tiles:
            stored = objects[number]
            ranges.append(ByteRange(stored.key, offset, size_bytes, stored.etag))
        try:
            return list(self.store.get_ranges(ranges))
        except (NotFound, ObjectChanged):
            return self._fetch_by_object(ranges)

    def _fetch_by_object(self, ranges: list[ByteRange]) -> list[bytes | SlideError]:
        """As `fetch`, one object after the other, to tell which of them is the trouble."""
        found: list[bytes | SlideError] = [b""] * len(ranges)
        for key in dict.fromkeys(each.key for each in ranges):
            places = [place for place, each in enumerate(ranges) if each.key == key]
            for place, data in zip(places, self._fetch_one(key, [ranges[i] for i in places]), strict=True):
                found[place] = data
        return found

    def _fetch_one(self, key: str, ranges: list[ByteRange]) -> Sequence[bytes | SlideError]:
        try:
            return self.store.get_ranges(ranges)
        except (NotFound, ObjectChanged) as error:
            return [absent_or_changed(key, error)] * len(ranges)


class StageSource:
    """Tiles from whole slides on a local disk."""

    def __init__(self, pool: StagePool) -> None:
        self.pool = pool

    def fetch(self, tiles: Sequence[TileBytes]) -> list[bytes | SlideError]:
        """As `ByteSource`."""
        found: list[bytes | SlideError] = [b""] * len(tiles)
        for objects in dict.fromkeys(tile.objects for tile in tiles):
            places = [place for place, tile in enumerate(tiles) if tile.objects == objects]
            for place, data in zip(
                places, self._fetch_slide(objects, [tiles[i] for i in places]), strict=True
            ):
                found[place] = data
        return found

    def _fetch_slide(
        self, objects: tuple[SlideObject, ...], tiles: list[TileBytes]
    ) -> Sequence[bytes | SlideError]:
        try:
            with self.pool.use(objects) as folder:
                return [_read(str(path_in(folder, objects, tile.object)), tile) for tile in tiles]
        except (NotFound, ObjectChanged) as error:
            return [absent_or_changed(objects[0].key, error)] * len(tiles)


def _read(path: str, tile: TileBytes) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, tile.size_bytes, tile.offset)
    finally:
        os.close(descriptor)
