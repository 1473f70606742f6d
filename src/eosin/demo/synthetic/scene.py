"""A slide's pixels: glass, islands of tissue on it, and what spoils some slides."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from eosin.demo.synthetic.config import TISSUE_CLASSES, SyntheticConfig
from eosin.demo.synthetic.plan import AnnotatedRegion, Polygon, SlideTruth
from eosin.demo.synthetic.texture import Image, Stain, draw_tissue

Rgb = npt.NDArray[np.uint8]
_REGION_SPREAD = 0.16
_NOISE_PX = 512
_PENS = ((28, 60, 150), (30, 110, 60), (35, 30, 40), (190, 30, 45))


def draw_slide(truth: SlideTruth, config: SyntheticConfig) -> Rgb:
    """Level-0 pixels, (height_px, width_px, 3) uint8 RGB."""
    rng = np.random.default_rng([truth.seed, 1])
    canvas = draw_glass(truth.width_px, truth.height_px, rng)
    stain = Stain.of_slide(rng)
    for region, child in zip(truth.regions, rng.spawn(len(truth.regions)), strict=True):
        if region.kind == "tissue":
            _add_tissue(canvas, region, stain, config.mpp, child)
        elif region.kind == "blur":
            _blur(canvas, region.polygon_px, 2.0 / config.mpp)
        else:
            _add_pen(canvas, region.polygon_px, child)
    return canvas


def draw_field(width_px: int, height_px: int, class_name: str, stain: Stain, mpp: float, seed: int) -> Rgb:
    """A field wholly inside tissue of one class, (height_px, width_px, 3) uint8 RGB, as a slide shows it."""
    rng = np.random.default_rng([seed, 2])
    field = draw_glass(width_px, height_px, rng)
    local = stain.varied(rng, _REGION_SPREAD)
    _transmit(field, draw_tissue(width_px, height_px, mpp, TISSUE_CLASSES[class_name], local, rng))
    return field


def draw_glass(width_px: int, height_px: int, rng: np.random.Generator) -> Rgb:
    """Near-white glass: darker towards the corners, a grain of a few grey levels."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    shade = 1 - rng.uniform(0.005, 0.025) * (x * x + y * y)
    white = np.array([243, 242, 244]) + rng.uniform(-3, 3, 3)
    small = np.clip(shade[..., None] * white, 0, 255).astype(np.uint8)
    glass = cv2.resize(small, (width_px, height_px), interpolation=cv2.INTER_LINEAR)
    grain = rng.integers(0, 5, (_NOISE_PX, _NOISE_PX, 3), dtype=np.uint8)
    for top in range(0, height_px, _NOISE_PX):
        for left in range(0, width_px, _NOISE_PX):
            tile = glass[top : top + _NOISE_PX, left : left + _NOISE_PX]
            tile -= grain[: tile.shape[0], : tile.shape[1]]
    return glass  # type: ignore[no-any-return]  # numpy's stubs lose the dtype


def _add_tissue(
    canvas: Rgb, region: AnnotatedRegion, stain: Stain, mpp: float, rng: np.random.Generator
) -> None:
    window, mask = _mask(canvas, region.polygon_px, margin_px=4, feather_px=1.0 / mpp)
    local = stain.varied(rng, _REGION_SPREAD)
    height_px, width_px = mask.shape
    density = draw_tissue(width_px, height_px, mpp, TISSUE_CLASSES[region.name], local, rng)
    _transmit(window, density * mask[..., None])


def _transmit(light: Rgb, density: Image) -> None:
    """Darkens `light` in place by `density`."""
    passed = cv2.exp(-density)
    cv2.multiply(light, passed, dst=light, dtype=cv2.CV_8U)


def _blur(canvas: Rgb, polygon: Polygon, sigma_px: float) -> None:
    window, mask = _mask(canvas, polygon, margin_px=round(8 * sigma_px), feather_px=3 * sigma_px)
    _blend(window, cv2.GaussianBlur(window, (0, 0), sigma_px), mask)


def _add_pen(canvas: Rgb, polygon: Polygon, rng: np.random.Generator) -> None:
    window, mask = _mask(canvas, polygon, margin_px=4, feather_px=1.5)
    ink = np.broadcast_to(np.array(_PENS[int(rng.integers(len(_PENS)))], np.uint8), window.shape)
    _blend(window, ink, mask * np.float32(rng.uniform(0.75, 0.92)))


def _blend(window: Rgb, over: Rgb, mask: Image) -> None:
    alpha = mask[..., None]
    window[:] = np.rint(window * (1 - alpha) + over * alpha).astype(np.uint8)


def _mask(canvas: Rgb, polygon: Polygon, *, margin_px: int, feather_px: float) -> tuple[Rgb, Image]:
    """The part of `canvas` round `polygon` (a view) and the polygon's soft-edged mask there, in [0, 1]."""
    height_px, width_px = canvas.shape[:2]
    left, top = np.maximum(np.floor(polygon.min(axis=0)).astype(int) - margin_px, 0)
    right, bottom = np.minimum(np.ceil(polygon.max(axis=0)).astype(int) + margin_px, (width_px, height_px))
    window = canvas[top:bottom, left:right]
    mask = np.zeros(window.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.rint(polygon - (left, top)).astype(np.int32)], 255, cv2.LINE_AA)
    soft = cv2.GaussianBlur(mask, (0, 0), feather_px).astype(np.float32)
    return window, soft / np.float32(255)
