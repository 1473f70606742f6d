"""The decoders that may crash, each behind the same interface as the others but in processes of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eosin.errors import MissingDependency
from eosin.patches.decoding.decoders import EncodedTile, NvImageCodecDecoder, Pixels, TileDecoder
from eosin.patches.decoding.pool import DecoderPool, Session
from eosin.patches.decoding.process import Worker
from eosin.patches.decoding.whole_slide import (
    OpenSlideFile,
    RegionReader,
    load_cucim,
    through_cucim,
    through_openslide,
)
from eosin.patches.geometry import Box
from eosin.patches.request import PatchRequest
from eosin.slides.errors import SlideError
from eosin.slides.model import SlideHeader

if TYPE_CHECKING:  # a decoder's process starts the sooner for it
    from eosin.config.patches import PatchesConfig

# What makes the worker of each decoder in its process; tests put their own crashing ones here.
WORKERS = {
    "nvimgcodec": "eosin.patches.decoding.isolated:tiles_worker",
    "cucim": "eosin.patches.decoding.isolated:regions_worker",
    "openslide": "eosin.patches.decoding.isolated:regions_worker",
}
_LIBRARIES = {"nvimgcodec": ("nvidia.nvimgcodec", "nvImageCodec"), "cucim": ("cucim", "cuCIM")}


@dataclass(frozen=True)
class Region:
    """What is read of one slide for one patch."""

    path: Path
    header: SlideHeader
    request: PatchRequest
    box: Box


class Isolation:
    """Processes for the decoders that a reader may need; none runs before it is needed."""

    def __init__(self, config: PatchesConfig, device: int | None = None) -> None:
        """`device`: the GPU that decodes and keeps pixels; None: they come as arrays.

        Raises `MissingDependency` where the configured decoder is absent.
        """
        self._device = device
        self._timeout_s = config.decoder_timeout_s
        self._pools: dict[str, DecoderPool] = {}
        self._lock = threading.Lock()
        if config.decoder != "cpu":
            self._pool(config.decoder)

    def tiles(self, decoder: str) -> TileDecoder:
        """Whole tiles by a library that may crash."""
        return IsolatedTiles(self._pool(decoder))

    def slides(self, decoder: str) -> OpenSlideFile:
        """Regions by a library that opens whole slides."""
        return through_pool(self._pool(decoder))

    def regions(self, decoder: str, regions: Sequence[Region]) -> list[Any]:
        """Regions of one slide together: pixels, or why there are none."""
        with self._pool(decoder).session() as session:
            return session.run(regions)

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools.values():
            pool.close()

    def _pool(self, decoder: str) -> DecoderPool:
        with self._lock:
            if decoder not in self._pools:
                self._pools[decoder] = open_pool(decoder, timeout_s=self._timeout_s, device=self._device)
            return self._pools[decoder]


class IsolatedTiles:
    """A `TileDecoder` in processes of its own."""

    max_denominator = 1

    def __init__(self, pool: DecoderPool) -> None:
        self._pool = pool

    def decode(self, tiles: Sequence[EncodedTile]) -> list[Pixels | SlideError]:
        return self._pool.run(tiles)


def open_pool(decoder: str, *, timeout_s: float, device: int | None = None) -> DecoderPool:
    """Processes of `decoder` (on GPU `device`), none started yet.

    Raises `MissingDependency` where its library is absent.
    """
    if decoder in _LIBRARIES:
        module, name = _LIBRARIES[decoder]
        if not _is_installed(module):
            raise MissingDependency(name, "gpu")
    on_device = device if decoder != "openslide" else None
    return DecoderPool(
        decoder, WORKERS[decoder], timeout_s=timeout_s, device=on_device,
        argument=decoder if on_device is None else f"{decoder} {device}",
    )  # fmt: skip


def through_pool(pool: DecoderPool) -> OpenSlideFile:
    """Slides through the library that `pool` holds, one process a slide that is open."""

    @contextlib.contextmanager
    def opened(path: Path, header: SlideHeader) -> Iterator[RegionReader]:
        with pool.session() as session:
            yield _Regions(session, path, header)

    return opened


class _Regions:
    def __init__(self, session: Session, path: Path, header: SlideHeader) -> None:
        self._session, self._path, self._header = session, path, header

    def read(self, request: PatchRequest, box: Box) -> Pixels:
        (found,) = self._session.run([Region(self._path, self._header, request, box)])
        if isinstance(found, SlideError):
            raise found
        return found


def tiles_worker(decoder: str) -> Worker:
    """In the decoder's process: whole tiles by nvImageCodec; "nvimgcodec 0" keeps them on GPU 0."""
    _, _, device = decoder.partition(" ")
    return TilesWorker(NvImageCodecDecoder(int(device) if device else None).decode)


def regions_worker(decoder: str) -> Worker:
    """In the decoder's process: regions of staged slides by OpenSlide or cuCIM; "cucim 0": on GPU 0."""
    name, _, device = decoder.partition(" ")
    if device:
        from eosin.patches.decoding.cucim_batches import CucimBatches

        return CucimBatches(load_cucim(), device=int(device))
    return RegionsWorker(through_cucim(load_cucim()) if name == "cucim" else through_openslide)


class TilesWorker:
    def __init__(self, decode: Callable[[Sequence[EncodedTile]], list[Pixels | SlideError]]) -> None:
        self.work = decode

    def rest(self) -> None:
        """Nothing is kept open between batches."""


class RegionsWorker:
    """Keeps the slide open that was read last."""

    def __init__(self, way: OpenSlideFile) -> None:
        self._way = way
        self._path: Path | None = None
        self._opened: RegionReader | None = None
        self._files = contextlib.ExitStack()

    def work(self, regions: Sequence[Region]) -> list[Pixels | SlideError]:
        return [self._read(region) for region in regions]

    def rest(self) -> None:
        self._files.close()
        self._path = self._opened = None

    def _read(self, region: Region) -> Pixels | SlideError:
        try:
            return self._slide(region).read(region.request, region.box)
        except SlideError as error:
            return error

    def _slide(self, region: Region) -> RegionReader:
        if self._opened is None or region.path != self._path:
            self.rest()
            self._opened = self._files.enter_context(self._way(region.path, region.header))
            self._path = region.path
        return self._opened


def _is_installed(module: str) -> bool:
    top = module.partition(".")[0]
    if top in sys.modules and sys.modules[top] is None:
        return False
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
