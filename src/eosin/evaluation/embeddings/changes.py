"""Changes of a patch that leave its tissue the same: other orientation, stain, sharpness."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Change = Callable[[Pixels], Pixels]

CHANGES_VERSION = 1

# Optical density of haematoxylin, eosin and the residual, a row each (Ruifrok & Johnston 2001).
_STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]], dtype=np.float32)
_STAINS /= np.linalg.norm(_STAINS, axis=1, keepdims=True)
_UNMIX = np.linalg.inv(_STAINS).astype(np.float32)


def rotate(pixels: Pixels) -> Pixels:
    """A quarter turn of [h, w, 3]."""
    return np.ascontiguousarray(np.rot90(pixels))


def flip(pixels: Pixels) -> Pixels:
    """Left to right."""
    return np.ascontiguousarray(pixels[:, ::-1])


def stain(pixels: Pixels) -> Pixels:
    """30 % more haematoxylin and 30 % less eosin: two laboratories."""
    density = -np.log((pixels.astype(np.float32) + 1) / 256)
    amounts = (density @ _UNMIX) * np.array([1.3, 0.7, 1.0], dtype=np.float32)
    light = 256 * np.exp(-np.maximum(amounts @ _STAINS, 0)) - 1
    return np.asarray(np.clip(np.round(light), 0, 255), dtype=np.uint8)


def blur(pixels: Pixels) -> Pixels:
    """A Gaussian of one pixel: a scanner slightly out of focus."""
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), 1.0), dtype=np.uint8)


CHANGES: dict[str, Change] = {"rotation": rotate, "flip": flip, "stain": stain, "blur": blur}
