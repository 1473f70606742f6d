"""Tile decoders behind one interface, on the CPU or by nvImageCodec, which may crash and has a process."""

import ctypes
import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from eosin.errors import MissingDependency
from eosin.slides.decode import decode_tile
from eosin.slides.errors import SlideError
from eosin.slides.jpeg import complete_jpeg
from eosin.slides.model import Level

Pixels = npt.NDArray[np.uint8]


class EncodedTile(NamedTuple):
    """Bytes of one tile of `level`, wanted at 1 / `denominator` of its size."""

    level: Level
    data: bytes
    denominator: int


class TileDecoder(Protocol):
    """Encoded tiles to pixels."""

    max_denominator: int
    """How far it scales JPEG tiles down while decoding; 1: not at all."""

    def decode(self, tiles: Sequence[EncodedTile]) -> list[Pixels | SlideError]:
        """RGB [h, w, 3] of each tile, or `SlideError` (`corrupt-tile`). Thread-safe."""
        ...


class CpuDecoder:
    """libjpeg-turbo, scaled in the DCT domain, and imagecodecs."""

    max_denominator = 8

    def decode(self, tiles: Sequence[EncodedTile]) -> list[Pixels | SlideError]:
        """As `TileDecoder`."""
        return [decode_one(tile) for tile in tiles]


def decode_one(tile: EncodedTile) -> Pixels | SlideError:
    """The tile by the CPU decoder."""
    try:
        return decode_tile(tile.level, tile.data, tile.denominator)
    except SlideError as error:
        return error


class NvImageCodecDecoder:
    """nvImageCodec, whole tiles in batches: on the GPU where there is one, else on the CPU.

    Tiles it would show in wrong colours (YCbCr JPEG 2000, gray) or cannot read go to the CPU decoder.
    Pixels come back to host memory, or stay on the GPU as tensors. The GPU path has not been run yet.
    """

    max_denominator = 1

    def __init__(self, device: int | None = None) -> None:
        """`device`: the GPU on which pixels stay, as tensors; None: they come as arrays."""
        self._device = device
        self._library = _nvimgcodec()
        self._threads = threading.local()

    def decode(self, tiles: Sequence[EncodedTile]) -> list[Pixels | SlideError]:
        """As `TileDecoder`; tensors on the GPU where a device was named."""
        mine = [place for place, tile in enumerate(tiles) if _is_safe(tile.level)]
        found: dict[int, Pixels | SlideError] = {}
        if mine:
            found = dict(zip(mine, self._decode([tiles[place] for place in mine]), strict=True))
        return [found[i] if i in found else decode_one(tile) for i, tile in enumerate(tiles)]

    def _decode(self, tiles: list[EncodedTile]) -> list[Pixels | SlideError]:
        parameters = self._library.DecodeParams(color_spec=self._library.ColorSpec.SRGB)
        try:
            streams = [_stream(tile) for tile in tiles]
        except SlideError:  # one damaged tile must not cost the others theirs
            return [decode_one(tile) for tile in tiles]
        images = self._decoder().decode(streams, params=parameters)
        keep = _to_host if self._device is None else _to_tensor
        return [keep(image, tile) for image, tile in zip(images, tiles, strict=True)]

    def _decoder(self) -> Any:
        """One a thread: a decoder may not be shared."""
        if not hasattr(self._threads, "decoder"):
            self._threads.decoder = _open_decoder(self._library, self._device)
        return self._threads.decoder


def _nvimgcodec() -> Any:
    try:
        from nvidia import nvimgcodec
    except ImportError as error:
        raise MissingDependency("nvImageCodec", "gpu") from error
    return nvimgcodec


def _open_decoder(library: Any, device: int | None) -> Any:
    """On `device`, or this rank's GPU; without one both arguments are needed, or it wants a driver."""
    if num_gpus():
        number = int(os.environ.get("LOCAL_RANK", "0")) % num_gpus() if device is None else device
        # Chroma is interpolated as the CPU decoder does it.
        return library.Decoder(device_id=number, options=":fancy_upsampling=1")
    backend = library.Backend(library.BackendKind.CPU_ONLY)
    return library.Decoder(
        device_id=library.NVIMGCODEC_DEVICE_CPU_ONLY, backends=[backend], max_num_cpu_threads=1
    )


@lru_cache(maxsize=1)
def num_gpus() -> int:
    """GPUs that the driver shows this process, asked without torch, which takes seconds to import."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if found else 0


def _is_safe(level: Level) -> bool:
    if level.compression == "jpeg":
        return level.color_space != "gray"
    return level.compression == "jpeg2000" and level.color_space.startswith("rgb")


def _stream(tile: EncodedTile) -> bytes:
    return complete_jpeg(tile.level, tile.data) if tile.level.compression == "jpeg" else tile.data


def _to_host(image: Any, tile: EncodedTile) -> Pixels | SlideError:
    if image is None:
        return SlideError("corrupt-tile", "nvImageCodec cannot decode a tile")
    pixels = np.array(image.cpu(), dtype=np.uint8)
    if pixels.shape != (tile.level.tile_height_px, tile.level.tile_width_px, 3):
        return SlideError("corrupt-tile", f"a tile decodes to {pixels.shape}")
    return pixels


def _to_tensor(image: Any, tile: EncodedTile) -> Any:
    """The image on the device, as a tensor of its own."""
    import torch.utils.dlpack

    if image is None:
        return SlideError("corrupt-tile", "nvImageCodec cannot decode a tile")
    pixels = torch.utils.dlpack.from_dlpack(image.to_dlpack())
    if tuple(pixels.shape) != (tile.level.tile_height_px, tile.level.tile_width_px, 3):
        return SlideError("corrupt-tile", f"a tile decodes to {tuple(pixels.shape)}")
    return pixels
