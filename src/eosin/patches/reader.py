"""Requests to pixels: a few patches at a time, each tile fetched and decoded once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from eosin.config.patches import PatchesConfig
from eosin.index.snapshot import Snapshot
from eosin.patches.cache import ArrayCache
from eosin.patches.geometry import box_of
from eosin.patches.reading import Reading, TileKey, plan_reading, resize
from eosin.patches.request import PatchRequest
from eosin.patches.sources import ByteSource, TileBytes, gone
from eosin.patches.stage import StagePool, path_in
from eosin.patches.tables import TileTables
from eosin.slides.decode import decode_tile
from eosin.slides.errors import SlideError
from eosin.slides.local import LocalSlide, open_local
from eosin.storage import NotFound, ObjectChanged

Pixels = npt.NDArray[np.uint8]


class PatchReader:
    """Reads patches of one snapshot. Thread-safe; holds `config.tile_cache_bytes` and a call's own tiles."""

    def __init__(
        self, snapshot: Snapshot, config: PatchesConfig, source: ByteSource, pool: StagePool | None
    ) -> None:
        """`pool` holds the copies of slides that only OpenSlide reads; None where there are none."""
        self.snapshot = snapshot
        self.config = config
        self._source = source
        self._pool = pool
        self._tables = TileTables(snapshot)
        self._tiles: ArrayCache[TileKey, Pixels] = ArrayCache(config.tile_cache_bytes)

    def read(self, requests: Sequence[PatchRequest]) -> list[Pixels | SlideError]:
        """Each patch as [patch_px, patch_px, 3] RGB, or why its slide cannot give it.

        Raises what is not one slide's trouble: `TransientError`, `UserError`.
        """
        rows = [self.snapshot.rows[request.slide] for request in requests]
        local = [place for place, row in enumerate(rows) if row.header.access == "local"]
        found: dict[int, Pixels | SlideError] = dict(self._read_local(requests, local))
        tiled = [place for place in range(len(requests)) if place not in found]
        patches = self._read_tiled([requests[place] for place in tiled])
        found |= dict(zip(tiled, patches, strict=True))
        return [found[place] for place in range(len(requests))]

    def _read_tiled(self, requests: list[PatchRequest]) -> list[Pixels | SlideError]:
        config = self.config
        readings = [
            plan_reading(
                request, self.snapshot.rows[request.slide].header, config.patch_px, config.mpp_tolerance
            )
            for request in requests
        ]
        tiles = self._load(dict.fromkeys(key for reading in readings for key in reading.tiles))
        return [_assemble(reading, tiles, config.patch_px) for reading in readings]

    def _load(self, keys: Iterable[TileKey]) -> dict[TileKey, Pixels | SlideError | None]:
        """Pixels of each tile; None for one that holds nothing."""
        tiles: dict[TileKey, Pixels | SlideError | None] = {key: self._tiles.get(key) for key in keys}
        absent = [key for key, pixels in tiles.items() if pixels is None]
        places = [(key, place) for key, place in zip(absent, self._tables.locate(absent), strict=True)
                  if place.size_bytes]  # fmt: skip
        encoded = self._source.fetch([place for _, place in places]) if places else []
        for (key, place), data in zip(places, encoded, strict=True):
            tiles[key] = self._decode(key, place, data)
        return tiles

    def _decode(self, key: TileKey, place: TileBytes, data: bytes | SlideError) -> Pixels | SlideError:
        if isinstance(data, SlideError):
            return data
        if len(data) != place.size_bytes:
            return SlideError("corrupt-tile", f"tile {key.tile} of level {key.level} ends early")
        try:
            pixels = decode_tile(
                self.snapshot.rows[key.slide].header.levels[key.level], data, key.denominator
            )
        except SlideError as error:
            return error
        self._tiles.put(key, pixels)
        return pixels

    def _read_local(
        self, requests: Sequence[PatchRequest], places: list[int]
    ) -> Iterable[tuple[int, Pixels | SlideError]]:
        for slide in dict.fromkeys(requests[place].slide for place in places):
            mine = [place for place in places if requests[place].slide == slide]
            yield from zip(mine, self._read_slide(slide, [requests[place] for place in mine]), strict=True)

    def _read_slide(self, slide: int, requests: list[PatchRequest]) -> list[Pixels | SlideError]:
        """Patches of one slide through OpenSlide, from its staged copy."""
        assert self._pool is not None
        objects = self.snapshot.rows[slide].header.objects
        try:
            with self._pool.use(objects) as folder:
                opened = open_local(path_in(folder, objects, 0))
                try:
                    return [self._read_region(opened, request) for request in requests]
                finally:
                    opened.close()
        except (NotFound, ObjectChanged) as error:
            return [gone(objects[0].key, error)] * len(requests)
        except SlideError as error:
            return [error] * len(requests)

    def _read_region(self, slide: LocalSlide, request: PatchRequest) -> Pixels | SlideError:
        config = self.config
        header = self.snapshot.rows[request.slide].header
        box = box_of(request, header, config.patch_px, config.mpp_tolerance)
        try:
            region = slide.read_region(request.x_px, request.y_px, box.level, box.width_px, box.height_px)
        except SlideError as error:
            return error
        return resize(region, config.patch_px)


def _assemble(
    reading: Reading, tiles: dict[TileKey, Pixels | SlideError | None], patch_px: int
) -> Pixels | SlideError:
    for key in reading.tiles:
        failure = tiles[key]
        if isinstance(failure, SlideError):
            return failure
    return reading.assemble(lambda key: _pixels(tiles[key]), patch_px)


def _pixels(tile: Pixels | SlideError | None) -> Pixels | None:
    assert not isinstance(tile, SlideError)
    return tile
