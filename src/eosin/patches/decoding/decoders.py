"""Tile decoders behind one interface; the configuration pins one, since they differ by a level or two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from eosin.slides.decode import decode_tile
from eosin.slides.errors import SlideError
from eosin.slides.model import Level

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class EncodedTile:
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
