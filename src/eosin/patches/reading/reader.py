"""The patch reader: requests to pixels, a few patches at a time, each tile fetched and decoded once."""

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from eosin.config.patches import PatchesConfig
from eosin.index.snapshot import Snapshot
from eosin.patches.decoding.decoders import CpuDecoder, EncodedTile, TileDecoder, decode_one
from eosin.patches.decoding.parent import Isolation
from eosin.patches.decoding.whole_slide import (
    OpenSlideFile,
    RegionReader,
    cucim_is_safe,
)
from eosin.patches.geometry import box_of
from eosin.patches.reading.read_plan import ReadPlan, TileKey, plan_read, resize
from eosin.patches.reading.sources import ByteSource, TileBytes
from eosin.patches.reading.stage import StagePool, path_in
from eosin.patches.reading.tables import ArrayCache, TileTables
from eosin.patches.request import PatchRequest
from eosin.slides.decode import decode_parts
from eosin.slides.dicom_frames import joined
from eosin.slides.errors import SlideError, absent_or_changed
from eosin.slides.model import SlideHeader
from eosin.slides.region import tile_from_finer
from eosin.storage import NotFound, ObjectChanged

T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]
# A tile as it lies in the store, or decoded; None for one that holds nothing.
_Tile = bytes | Pixels | None


class PatchReader:
    """Reads patches of one snapshot. Thread-safe; holds `config.tile_cache_bytes` and a call's own tiles."""

    def __init__(
        self,
        snapshot: Snapshot,
        config: PatchesConfig,
        source: ByteSource,
        pool: StagePool | None,
        *,
        share_tiles: bool = False,
    ) -> None:
        """`pool` holds the copies of slides that a library reads whole; None where there are none.
        `share_tiles`: patches are neighbours, so tiles are decoded whole and kept for the next ones.

        Raises `MissingDependency` where the configured decoder is absent.
        """
        self.snapshot = snapshot
        self.config = config
        self._source = source
        self._pool = pool
        self._tables = TileTables(snapshot)
        self._tiles: ArrayCache[TileKey, Pixels] = ArrayCache(config.tile_cache_bytes)
        self._isolated = Isolation(config)
        self._decoder: TileDecoder = (
            self._isolated.tiles("nvimgcodec") if config.decoder == "nvimgcodec" else CpuDecoder()
        )
        self._in_parts = isinstance(self._decoder, CpuDecoder) and not share_tiles
        self._cucim = self._isolated.slides("cucim") if config.decoder == "cucim" else None
        self._scratch = threading.local()

    def read(self, requests: Sequence[PatchRequest]) -> list[Pixels | SlideError]:
        """Each patch as [patch_px, patch_px, 3] RGB, or why its slide cannot give it; see `read_into`."""
        patches = self.empty(len(requests))
        errors = self.read_into(requests, patches)
        return [error or patch for error, patch in zip(errors, patches, strict=True)]

    def read_into(self, requests: Sequence[PatchRequest], patches: Pixels) -> list[SlideError | None]:
        """Write each patch into its row of `patches` [n, patch_px, patch_px, 3], RGB; what is returned
        says why its slide could not give it, and then the row means nothing.

        Raises what is not one slide's trouble: `TransientError`, `UserError`.
        """
        errors: dict[int, SlideError | None] = {}
        of_slides: dict[int, dict[int, PatchRequest]] = {}
        for place, request in enumerate(requests):
            of_slides.setdefault(request.slide, {})[place] = request
        tiled: dict[int, PatchRequest] = {}
        for slide, mine in of_slides.items():
            way = self._whole_slide(slide)
            if way is None:
                tiled |= mine
            else:
                errors |= self._read_slide(way, slide, mine, patches)
        errors |= self._read_tiled(tiled, patches)
        return [errors[place] for place in range(len(requests))]

    def empty(self, num: int) -> Pixels:
        """Room for `num` patches: uint8 [num, patch_px, patch_px, 3], where this reader puts them."""
        side_px = self.config.patch_px
        return np.empty((num, side_px, side_px, 3), np.uint8)

    def close(self) -> None:
        """End the processes of decoders, if any run."""
        self._isolated.close()

    def _whole_slide(self, slide: int) -> OpenSlideFile | None:
        """The library that reads the slide from a staged copy; None where its tiles are read."""
        header = self.snapshot.rows[slide].header
        if header.access == "local":
            return self._isolated.slides("openslide")
        return self._cucim if self._cucim is not None and cucim_is_safe(header) else None

    def _read_tiled(self, requests: dict[int, PatchRequest], patches: Pixels) -> dict[int, SlideError | None]:
        config, rows = self.config, self.snapshot.rows
        most = self._decoder.max_denominator
        plans = {
            place: plan_read(request, rows[request.slide].header, config.patch_px, config.mpp_tolerance, most)
            for place, request in requests.items()
        }
        tiles = self._load(key for plan in plans.values() for key in plan.tiles)
        return {place: self._assemble(plan, tiles, patches[place]) for place, plan in plans.items()}

    def _load(self, keys: Iterable[TileKey]) -> dict[TileKey, _Tile | SlideError]:
        """Each tile: encoded where parts of it will be decoded, else its pixels."""
        tiles: dict[TileKey, _Tile | SlideError] = dict.fromkeys(keys)
        if not self._in_parts:
            tiles = {key: self._tiles.get(key) for key in tiles}
        absent = [key for key, pixels in tiles.items() if pixels is None]
        located = list(zip(absent, self._tables.locate(absent), strict=True))
        filled = [(key, place) for key, place in located if place.size_bytes]
        encoded = self._source.fetch([place for _, place in filled]) if filled else ()
        slides, rows = {key.slide for key, _ in filled}, self.snapshot.rows
        dicom = {slide for slide in slides if rows[slide].header.format == "dicom"}
        for (key, place), data in zip(filled, encoded, strict=True):
            tiles[key] = _checked(key, place, data, is_dicom=key.slide in dicom)
        if not self._in_parts:
            tiles |= self._decode({key: tile for key, tile in tiles.items() if isinstance(tile, bytes)})
        tiles |= {key: self._from_finer(key) for key, place in located if key.level and not place.size_bytes}
        return tiles

    def _from_finer(self, key: TileKey) -> Pixels | SlideError | None:
        """An absent tile of a coarser level, made from the next finer one."""
        header = self.snapshot.rows[key.slide].header
        found = self._tiles.get(key)
        if found is not None:
            return found
        try:
            pixels = tile_from_finer(header, key.level, key.tile, partial(self._load_whole, key.slide))
        except SlideError as error:
            return error
        if pixels is None:
            return None
        scaled = np.empty((*(side // key.denominator for side in pixels.shape[:2]), 3), np.uint8)
        resize(pixels, scaled)
        self._tiles.put(key, scaled)
        return scaled

    def _load_whole(self, slide: int, level: int, tiles: Sequence[int]) -> dict[int, Pixels | None]:
        """Whole tiles of a level, None where there is nothing. Raises `SlideError`."""
        found = self._load(TileKey(slide, level, tile, 1) for tile in tiles)
        whole: dict[int, Pixels | None] = {}
        for key, tile in found.items():
            pixels = decode_one(self._encoded(key, tile)) if isinstance(tile, bytes) else tile
            if isinstance(pixels, SlideError):
                raise pixels
            whole[key.tile] = None if pixels is None else self._on_host(pixels)
        return whole

    def _on_host(self, pixels: Pixels) -> Pixels:
        """Decoded pixels as an array; a reader on a device holds them elsewhere."""
        return pixels

    def _encoded(self, key: TileKey, data: bytes) -> EncodedTile:
        return EncodedTile(self.snapshot.rows[key.slide].header.levels[key.level], data, key.denominator)

    def _decode(self, tiles: dict[TileKey, bytes]) -> dict[TileKey, Pixels | SlideError]:
        encoded = [self._encoded(key, data) for key, data in tiles.items()]
        decoded = dict(zip(tiles, self._decoder.decode(encoded), strict=True))
        for key, pixels in decoded.items():
            if not isinstance(pixels, SlideError):
                self._tiles.put(key, pixels)
        return decoded

    def _assemble(
        self, plan: ReadPlan, tiles: dict[TileKey, _Tile | SlideError], patch: Pixels
    ) -> SlideError | None:
        try:
            found = tiles_of(plan, tiles)
            shape = (plan.box.height_px, plan.box.width_px, 3)
            region = patch if patch.shape == shape else self._scratch_of(shape)
            decode_parts(plan.level, plan.denominator, found, plan.parts, region)
        except SlideError as error:
            return error
        if region is not patch:
            resize(region, patch)
        return None

    def _scratch_of(self, shape: tuple[int, int, int]) -> Pixels:
        """An array of this thread's own, for one patch: fresh pages for each cost more than a resize."""
        num_bytes = math.prod(shape)
        held: Pixels | None = getattr(self._scratch, "held", None)
        if held is None or len(held) < num_bytes:
            held = self._scratch.held = np.empty(num_bytes, np.uint8)
        return held[:num_bytes].reshape(shape)

    def _read_slide(
        self, way: OpenSlideFile, slide: int, requests: dict[int, PatchRequest], patches: Pixels
    ) -> dict[int, SlideError | None]:
        """Patches of one slide through a library, from its staged copy."""
        assert self._pool is not None
        header = self.snapshot.rows[slide].header
        objects = header.objects
        try:
            with self._pool.use(objects) as folder, way(path_in(folder, objects, 0), header) as opened:
                return {
                    place: self._read_region(opened, header, request, patches[place])
                    for place, request in requests.items()
                }
        except (NotFound, ObjectChanged) as error:
            return dict.fromkeys(requests, absent_or_changed(objects[0].key, error))
        except SlideError as error:
            return dict.fromkeys(requests, error)

    def _read_region(
        self, opened: RegionReader, header: SlideHeader, request: PatchRequest, patch: Pixels
    ) -> SlideError | None:
        box = box_of(request, header, self.config.patch_px, self.config.mpp_tolerance)
        try:
            resize(opened.read(request, box), patch)
        except SlideError as error:
            return error
        return None


def _checked(
    key: TileKey, place: TileBytes, data: bytes | SlideError, *, is_dicom: bool
) -> bytes | SlideError:
    if isinstance(data, SlideError):
        return data
    if len(data) != place.size_bytes:
        return SlideError("corrupt-tile", f"tile {key.tile} of level {key.level} ends early")
    return joined(data) if is_dicom else data


def tiles_of(plan: ReadPlan, tiles: Mapping[TileKey, T | SlideError]) -> list[T]:
    """The tiles under the patch, None for those that hold nothing.

    Raises the `SlideError` of the first that has one, and one where all are absent: white that nobody scanned
    is no glass, so such a patch is drawn again.
    """
    found: list[T] = []
    for tile in map(tiles.__getitem__, plan.tiles):
        if isinstance(tile, SlideError):
            raise tile
        found.append(tile)
    if all(tile is None for tile in found):
        raise SlideError("absent-tiles", "no tile of the patch is there")
    return found
