"""Where the tissue is: a bit a mask pixel, and the foreground share of any box in constant time."""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, overload

import cv2
import numpy as np
import numpy.typing as npt

from eosin.errors import PermanentError

_SUMS_BYTES = 512 * 2**20
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TissueMask:
    """A tissue mask over the level-0 frame, origin at the slide's top-left corner.

    `packed`: zlib-compressed `numpy.packbits` of the row-major mask, 5–20 kB for a large slide, so that
    30,000 of them fit in memory. The summed-area table is made on first use and kept in a cache shared
    by all masks, bounded by bytes.
    """

    packed: bytes
    width: int
    height: int
    pixel_x_px: float
    """Width of a mask pixel in level-0 pixels."""
    pixel_y_px: float
    """Height of a mask pixel in level-0 pixels."""

    @classmethod
    def from_array(cls, mask: npt.NDArray[np.bool_], pixel_x_px: float, pixel_y_px: float) -> TissueMask:
        """Pack a boolean mask [height, width]."""
        packed = zlib.compress(np.packbits(mask).tobytes(), 6)
        return cls(packed, mask.shape[1], mask.shape[0], pixel_x_px, pixel_y_px)

    @property
    def array(self) -> npt.NDArray[np.bool_]:
        """The mask, [height, width] bool. Raises `PermanentError` where the bits are damaged."""
        num_bytes = -(-self.width * self.height // 8)
        try:
            bits = zlib.decompressobj().decompress(self.packed, num_bytes)
        except zlib.error as error:
            raise PermanentError(f"a tissue mask is damaged: {error}", hint="index again") from error
        if len(bits) != num_bytes:
            raise PermanentError("a tissue mask is damaged: it is too short", hint="index again")
        flat = np.unpackbits(np.frombuffer(bits, np.uint8), count=self.width * self.height)
        return flat.reshape(self.height, self.width).astype(bool)

    @property
    def area(self) -> float:
        """Tissue area in level-0 pixels²."""
        return float(_SUMS.of(self)[-1, -1]) * self.pixel_x_px * self.pixel_y_px

    @property
    def bounds_px(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) of the tissue's bounding box in the level-0 frame; all 0 where there is none."""
        mask = self.array
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        if not len(columns):
            return 0.0, 0.0, 0.0, 0.0
        return (
            float(columns[0] * self.pixel_x_px), float(rows[0] * self.pixel_y_px),
            float((columns[-1] + 1) * self.pixel_x_px), float((rows[-1] + 1) * self.pixel_y_px),
        )  # fmt: skip

    @overload
    def fraction(self, x_px: float, y_px: float, w_px: float, h_px: float) -> float: ...

    @overload
    def fraction(
        self, x_px: npt.NDArray[Any], y_px: npt.NDArray[Any], w_px: npt.ArrayLike, h_px: npt.ArrayLike
    ) -> Floats: ...

    def fraction(
        self, x_px: npt.ArrayLike, y_px: npt.ArrayLike, w_px: npt.ArrayLike, h_px: npt.ArrayLike
    ) -> float | Floats:
        """Share of the box (corner and size in level-0 pixels) that is tissue, in [0, 1].

        Exact for the mask as drawn: mask pixels cut by the box count by the part inside. What lies
        outside the slide is no tissue. Arrays broadcast together and give float64. Raises ValueError
        for a box without area.
        """
        x, y, w, h = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (x_px, y_px, w_px, h_px)))
        if (w <= 0).any() or (h <= 0).any():
            raise ValueError("a box needs a width and a height above 0")
        sums = _SUMS.of(self)
        u0, u1 = x / self.pixel_x_px, (x + w) / self.pixel_x_px
        v0, v1 = y / self.pixel_y_px, (y + h) / self.pixel_y_px
        inside = _at(sums, u1, v1) - _at(sums, u0, v1) - _at(sums, u1, v0) + _at(sums, u0, v0)
        share = np.clip(inside / ((u1 - u0) * (v1 - v0)), 0.0, 1.0)
        return share if share.ndim else float(share)


def _at(sums: npt.NDArray[np.int32], u: Floats, v: Floats) -> Floats:
    """The summed-area table at real positions: bilinear between its nodes is exact within a pixel."""
    u = np.clip(u, 0, sums.shape[1] - 1)
    v = np.clip(v, 0, sums.shape[0] - 1)
    i, j = (
        np.minimum(v.astype(np.int64), sums.shape[0] - 2),
        np.minimum(u.astype(np.int64), sums.shape[1] - 2),
    )
    down, right = v - i, u - j
    top = sums[i, j] * (1 - right) + sums[i, j + 1] * right
    bottom = sums[i + 1, j] * (1 - right) + sums[i + 1, j + 1] * right
    value: Floats = top * (1 - down) + bottom * down
    return value


class _SumsCache:
    """Summed-area tables [height + 1, width + 1] int32 of the masks used last, at most `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[int, tuple[TissueMask, npt.NDArray[np.int32]]] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def of(self, mask: TissueMask) -> npt.NDArray[np.int32]:
        with self._lock:
            held = self._held.get(id(mask))
            if held is not None:
                self._held.move_to_end(id(mask))
                return held[1]
        sums: npt.NDArray[np.int32] = cv2.integral(mask.array.astype(np.uint8), sdepth=cv2.CV_32S)
        with self._lock:
            if id(mask) not in self._held:
                self._held[id(mask)] = (mask, sums)
                self._num_bytes += sums.nbytes
            while self._num_bytes > self._max_bytes and len(self._held) > 1:
                self._num_bytes -= self._held.popitem(last=False)[1][1].nbytes
        return sums


_SUMS = _SumsCache(_SUMS_BYTES)
