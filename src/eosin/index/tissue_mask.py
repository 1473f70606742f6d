"""The tissue mask: a bit a mask pixel, and the foreground share of any box in constant time."""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, SupportsBytes, TypeVar, overload

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eosin.errors import PermanentError

_BITS_BYTES = 256 * 2**20
_SUMS_BYTES = 256 * 2**20
# What looking at one window costs, in mask pixels passed over by a summed-area table.
_WINDOW_COST = 4096
# A mask is unpacked at every first draw on its slide: zstd takes a third of zlib's time there, and a quarter
# less room. Level 9 saves 2 % of it and takes three times as long.
_CODEC = pa.Codec("zstd", compression_level=6)
_NO_AREA = "a box needs a width and a height above 0"
Floats = npt.NDArray[np.float64]
Number = TypeVar("Number", np.uint8, np.int32)


@dataclass(frozen=True, eq=False)
class TissueMask:
    """A tissue mask over the level-0 frame, origin at the slide's top-left corner.

    `packed`: zstd-compressed `numpy.packbits` along the rows, 5–30 kB for a large slide, in memory or
    read where it lies. What is unpacked is kept in caches shared by all masks, bounded by bytes.
    """

    packed: memoryview | SupportsBytes
    width: int
    height: int
    pixel_x_px: float
    """Width of a mask pixel in level-0 pixels."""
    pixel_y_px: float
    """Height of a mask pixel in level-0 pixels."""

    @classmethod
    def from_array(cls, mask: npt.NDArray[np.bool_], pixel_x_px: float, pixel_y_px: float) -> "TissueMask":
        """Pack a boolean mask [height, width]."""
        packed = _CODEC.compress(np.packbits(mask, axis=1).tobytes(), asbytes=True)
        return cls(packed, mask.shape[1], mask.shape[0], pixel_x_px, pixel_y_px)

    @property
    def array(self) -> npt.NDArray[np.bool_]:
        """The mask, [height, width] bool. Raises `PermanentError` where the bits are damaged."""
        return np.unpackbits(_BITS.of(self), axis=1, count=self.width).view(bool)

    @property
    def area(self) -> float:
        """Tissue area in level-0 pixels²."""
        return float(np.count_nonzero(self.array)) * self.pixel_x_px * self.pixel_y_px

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
            raise ValueError(_NO_AREA)
        u0, u1 = x / self.pixel_x_px, (x + w) / self.pixel_x_px
        v0, v1 = y / self.pixel_y_px, (y + h) / self.pixel_y_px
        area = (u1 - u0) * (v1 - v0)
        inside = _in_windows if self._looks_at_windows(area.sum(), area.size) else _in_sums
        share = np.clip(inside(self, u0, v0, u1, v1) / area, 0.0, 1.0)
        return share if share.ndim else float(share)

    def fraction_of_one(self, x_px: float, y_px: float, w_px: float, h_px: float) -> float:
        """As `fraction` of one box, to the bit, for a third of the time: a sampler asks box by box."""
        if w_px <= 0 or h_px <= 0:
            raise ValueError(_NO_AREA)
        u0, u1 = x_px / self.pixel_x_px, (x_px + w_px) / self.pixel_x_px
        v0, v1 = y_px / self.pixel_y_px, (y_px + h_px) / self.pixel_y_px
        area = (u1 - u0) * (v1 - v0)
        if self._looks_at_windows(area, 1):
            inside = _in_window(_BITS.of(self), self.width, u0, v0, u1, v1)
        else:
            inside = float(_in_sums(self, *(np.array(edge) for edge in (u0, v0, u1, v1))))
        return min(max(inside / area, 0.0), 1.0)

    def _looks_at_windows(self, area: float, num_boxes: int) -> bool:
        few = area + _WINDOW_COST * num_boxes < self.width * self.height
        return few and not _SUMS.holds(self)


def _in_sums(mask: TissueMask, u0: Floats, v0: Floats, u1: Floats, v1: Floats) -> Floats:
    """Tissue in boxes by the summed-area table: four look-ups a box, after one pass over the mask."""
    sums = _SUMS.of(mask)
    inside: Floats = _at(sums, u1, v1) - _at(sums, u0, v1) - _at(sums, u1, v0) + _at(sums, u0, v0)
    return inside


def _in_windows(mask: TissueMask, u0: Floats, v0: Floats, u1: Floats, v1: Floats) -> Floats:
    """Tissue in boxes by their own bits: for a few boxes on a mask met for the first time.

    A training run over thousands of slides asks a few boxes of each, and comes back too late to find a
    summed-area table (19 MB for a large slide) still held; the bits are 32 times smaller.
    """
    bits = _BITS.of(mask)
    boxes = np.stack([each.ravel() for each in (u0, v0, u1, v1)], axis=1)
    inside = np.array([_in_window(bits, mask.width, *box) for box in boxes.tolist()])
    return inside.reshape(u0.shape)


def _in_window(bits: npt.NDArray[np.uint8], width: int, u0: float, v0: float, u1: float, v1: float) -> float:
    j0, j1 = max(0, math.floor(u0)), min(width, math.ceil(u1))
    i0, i1 = max(0, math.floor(v0)), min(len(bits), math.ceil(v1))
    if i0 >= i1 or j0 >= j1:
        return 0.0
    first = j0 >> 3
    window = np.unpackbits(bits[i0:i1, first : (j1 + 7) >> 3], axis=1)[:, j0 - 8 * first : j1 - 8 * first]
    return float(_inside(i0, i1, v0, v1) @ window @ _inside(j0, j1, u0, u1))


_ONES = np.ones(64)  # a copy of some costs a quarter of `np.ones`


def _inside(first: int, end: int, low: float, high: float) -> Floats:
    """How much of each mask pixel from `first` to before `end` lies in [low, high)."""
    inside = _ONES[: end - first].copy() if end - first <= len(_ONES) else np.ones(end - first)
    inside[0] = min(first + 1, high) - max(first, low)
    inside[-1] = min(end, high) - max(end - 1, low)
    return inside


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


class _Cache(Generic[Number]):
    """What was made of the masks used last, at most `max_bytes` of it (but always one)."""

    def __init__(self, make: Callable[[TissueMask], npt.NDArray[Number]], max_bytes: int) -> None:
        self._make: Callable[[TissueMask], npt.NDArray[Number]] = make
        self._max_bytes = max_bytes
        self._held: OrderedDict[int, tuple[TissueMask, npt.NDArray[Number]]] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def holds(self, mask: TissueMask) -> bool:
        return id(mask) in self._held

    def of(self, mask: TissueMask) -> npt.NDArray[Number]:
        with self._lock:
            held = self._held.get(id(mask))
            if held is not None:
                self._held.move_to_end(id(mask))
                return held[1]
        made: npt.NDArray[Number] = self._make(mask)
        with self._lock:
            if id(mask) not in self._held:
                self._held[id(mask)] = (mask, made)
                self._num_bytes += made.nbytes
            while self._num_bytes > self._max_bytes and len(self._held) > 1:
                self._num_bytes -= self._held.popitem(last=False)[1][1].nbytes
        return made


def _unpacked(mask: TissueMask) -> npt.NDArray[np.uint8]:
    """The bits, [height, ceil(width / 8)]. Raises `PermanentError` where they are damaged."""
    row_bytes = -(-mask.width // 8)
    num_bytes = row_bytes * mask.height
    try:
        bits = _CODEC.decompress(bytes(mask.packed), num_bytes, asbytes=True)
    except OSError as error:
        raise PermanentError(f"a tissue mask is damaged: {error}", hint="index again") from error
    return np.frombuffer(bits, np.uint8).reshape(mask.height, row_bytes)


def _summed(mask: TissueMask) -> npt.NDArray[np.int32]:
    """[height + 1, width + 1]: how much tissue lies above and left of each node."""
    sums: npt.NDArray[np.int32] = cv2.integral(mask.array.view(np.uint8), sdepth=cv2.CV_32S)
    return sums


_BITS = _Cache(_unpacked, _BITS_BYTES)
_SUMS = _Cache(_summed, _SUMS_BYTES)
