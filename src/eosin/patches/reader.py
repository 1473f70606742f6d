"""Requests to pixels: a few patches at a time, each tile fetched and decoded once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from eosin.config.patches import PatchesConfig
from eosin.index.snapshot import Snapshot
from eosin.patches.cache import ArrayCache
from eosin.patches.decoders import EncodedTile, tile_decoder
from eosin.patches.geometry import box_of
from eosin.patches.reading import Reading, TileKey, plan_reading, resize
from eosin.patches.request import PatchRequest
from eosin.patches.sources import ByteSource, TileBytes, gone
from eosin.patches.stage import StagePool, path_in
from eosin.patches.tables import TileTables
from eosin.patches.whole_slide import (
    OpenSlideFile,
    RegionReader,
    cucim_is_safe,
    load_cucim,
    through_cucim,
    through_openslide,
)
from eosin.slides.errors import SlideError
from eosin.slides.model import SlideHeader
from eosin.storage import NotFound, ObjectChanged

Pixels = npt.NDArray[np.uint8]


class PatchReader:
    """Reads patches of one snapshot. Thread-safe; holds `config.tile_cache_bytes` and a call's own tiles."""

    def __init__(
        self, snapshot: Snapshot, config: PatchesConfig, source: ByteSource, pool: StagePool | None
    ) -> None:
        """`pool` holds the copies of slides that a library reads whole; None where there are none.

        Raises `MissingDependency` where the configured decoder is absent.
        """
        self.snapshot = snapshot
        self.config = config
        self._source = source
        self._pool = pool
        self._tables = TileTables(snapshot)
        self._tiles: ArrayCache[TileKey, Pixels] = ArrayCache(config.tile_cache_bytes)
        self._decoder = tile_decoder(config.decoder)
        self._cucim = through_cucim(load_cucim()) if config.decoder == "cucim" else None

    def read(self, requests: Sequence[PatchRequest]) -> list[Pixels | SlideError]:
        """Each patch as [patch_px, patch_px, 3] RGB, or why its slide cannot give it.

        Raises what is not one slide's trouble: `TransientError`, `UserError`.
        """
        found: dict[int, Pixels | SlideError] = {}
        tiled: list[int] = []
        for slide in dict.fromkeys(request.slide for request in requests):
            mine = [place for place, request in enumerate(requests) if request.slide == slide]
            way = self._whole_slide(slide)
            if way is None:
                tiled += mine
            else:
                patches = self._read_slide(way, slide, [requests[place] for place in mine])
                found |= dict(zip(mine, patches, strict=True))
        patches = self._read_tiled([requests[place] for place in tiled])
        found |= dict(zip(tiled, patches, strict=True))
        return [found[place] for place in range(len(requests))]

    def _whole_slide(self, slide: int) -> OpenSlideFile | None:
        """The library that reads the slide from a staged copy; None where its tiles are read."""
        header = self.snapshot.rows[slide].header
        if header.access == "local":
            return through_openslide
        return self._cucim if self._cucim is not None and cucim_is_safe(header) else None

    def _read_tiled(self, requests: list[PatchRequest]) -> list[Pixels | SlideError]:
        config = self.config
        readings = [
            plan_reading(
                request,
                self.snapshot.rows[request.slide].header,
                config.patch_px,
                config.mpp_tolerance,
                self._decoder.max_denominator,
            )
            for request in requests
        ]
        tiles = self._load(dict.fromkeys(key for reading in readings for key in reading.tiles))
        return [_assemble(reading, tiles, config.patch_px) for reading in readings]

    def _load(self, keys: Iterable[TileKey]) -> dict[TileKey, Pixels | SlideError | None]:
        """Pixels of each tile; None for one that holds nothing."""
        tiles: dict[TileKey, Pixels | SlideError | None] = {key: self._tiles.get(key) for key in keys}
        absent = [key for key, pixels in tiles.items() if pixels is None]
        places = {
            key: place
            for key, place in zip(absent, self._tables.locate(absent), strict=True)
            if place.size_bytes
        }
        encoded = dict(zip(places, self._source.fetch(list(places.values())), strict=True)) if places else {}
        whole = {key: self._checked(key, places[key], data) for key, data in encoded.items()}
        tiles |= {key: tile for key, tile in whole.items() if isinstance(tile, SlideError)}
        return tiles | self._decode(
            {key: tile for key, tile in whole.items() if isinstance(tile, EncodedTile)}
        )

    def _checked(self, key: TileKey, place: TileBytes, data: bytes | SlideError) -> EncodedTile | SlideError:
        if isinstance(data, SlideError):
            return data
        if len(data) != place.size_bytes:
            return SlideError("corrupt-tile", f"tile {key.tile} of level {key.level} ends early")
        level = self.snapshot.rows[key.slide].header.levels[key.level]
        return EncodedTile(level, data, key.denominator)

    def _decode(self, tiles: dict[TileKey, EncodedTile]) -> dict[TileKey, Pixels | SlideError]:
        decoded = dict(zip(tiles, self._decoder.decode(list(tiles.values())), strict=True))
        for key, pixels in decoded.items():
            if not isinstance(pixels, SlideError):
                self._tiles.put(key, pixels)
        return decoded

    def _read_slide(
        self, way: OpenSlideFile, slide: int, requests: list[PatchRequest]
    ) -> list[Pixels | SlideError]:
        """Patches of one slide through a library, from its staged copy."""
        assert self._pool is not None
        header = self.snapshot.rows[slide].header
        objects = header.objects
        try:
            with self._pool.use(objects) as folder, way(path_in(folder, objects, 0), header) as opened:
                return [self._read_region(opened, header, request) for request in requests]
        except (NotFound, ObjectChanged) as error:
            return [gone(objects[0].key, error)] * len(requests)
        except SlideError as error:
            return [error] * len(requests)

    def _read_region(
        self, opened: RegionReader, header: SlideHeader, request: PatchRequest
    ) -> Pixels | SlideError:
        box = box_of(request, header, self.config.patch_px, self.config.mpp_tolerance)
        try:
            return resize(opened.read(request, box), self.config.patch_px)
        except SlideError as error:
            return error


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
