"""Encoded masks as a class for every pixel."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eosin.evaluation.transform import BadImage, decode_raw

IGNORE = 255
"""Class of pixels that are neither learned nor judged."""
MAX_CLASSES = 64
_BINARY = 255
_MAX_NAMED = 8

Classes = npt.NDArray[np.uint8]


def load_mask(data: bytes) -> npt.NDArray[np.int64]:
    """The values [h, w] of a mask: indices of a palette, or grey; colours are refused. Raises `BadImage`."""
    image = decode_raw(data)
    values = np.asarray(image)
    if values.ndim == 3:
        if image.mode not in ("RGB", "RGBA", "LA") or not _is_grey(values, image.mode):
            raise BadImage(f"a mask in colours ({image.mode}): one channel of class indices is needed")
        values = values[..., 0]
    if values.dtype.kind == "f":
        raise BadImage("a mask of fractions: whole class indices are needed")
    return values.astype(np.int64)


def _is_grey(values: npt.NDArray[np.uint8], mode: str) -> bool:
    colors = values[..., : 1 if mode == "LA" else 3]
    return bool((colors == colors[..., :1]).all())


@dataclass(frozen=True)
class MaskCoding:
    """What the values of a dataset's masks mean."""

    num_classes: int
    is_binary: bool
    """0 and 255 stand for the classes 0 and 1."""
    ignore_value: int | None = None

    def unknown(self, values: Iterable[int]) -> str:
        """Why a mask with these values cannot be used; empty where it can."""
        kept = set(values) - {self.ignore_value}
        bad = sorted(v for v in kept if not self._is_known(v)) or _mixed(kept)
        if not bad:
            return ""
        named = ", ".join(map(str, bad[:_MAX_NAMED])) + (" …" if len(bad) > _MAX_NAMED else "")
        known = f"0 to {self.num_classes - 1}" + (" or 255" if self.is_binary else "")
        return f"its mask has the value(s) {named}; known are {known}, and ignore_value where it is set"

    def _is_known(self, value: int) -> bool:
        return 0 <= value < self.num_classes or (self.is_binary and value == _BINARY)

    def classes(self, values: npt.NDArray[np.int64]) -> Classes:
        """uint8 [h, w]: the class of each pixel, or `IGNORE`. `values` must be known."""
        ignored = (
            values == self.ignore_value if self.ignore_value is not None else np.zeros_like(values, bool)
        )
        classes = np.where(values == _BINARY, 1, values) if self.is_binary else values
        return np.where(ignored, IGNORE, classes).astype(np.uint8)


def infer_coding(
    masks: Iterable[frozenset[int]], *, num_classes: int | None, ignore_value: int | None
) -> MaskCoding:
    """The coding that the values of all masks speak for.

    0 and 255 are two classes where no mask has a value from 2 to 63; else values are class indices.
    A mask that is neither (anti-aliased, of instances, with 255 beside class indices) has no say.
    """
    seen: set[int] = set()
    for values in masks:
        kept = values - {ignore_value}
        if all(0 <= v < MAX_CLASSES or v == _BINARY for v in kept) and not _mixed(kept):
            seen |= kept
    if not seen:
        return MaskCoding(num_classes or MAX_CLASSES, is_binary=False, ignore_value=ignore_value)
    is_binary = _BINARY in seen and max(seen - {_BINARY}, default=0) <= 1 and num_classes in (None, 2)
    found = 2 if is_binary else max(seen - {_BINARY}, default=0) + 1
    return MaskCoding(num_classes or found, is_binary, ignore_value)


def _mixed(values: Collection[int]) -> list[int]:
    """255 where it stands beside class indices: it may mean class 1 or nothing, so nobody guesses."""
    return [_BINARY] if _BINARY in values and any(v not in (0, _BINARY) for v in values) else []
