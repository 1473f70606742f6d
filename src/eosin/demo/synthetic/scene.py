"""Picture of a synthetic slide: islands of tissue on glass, planned from the seed, and their pixels."""

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from eosin.demo.synthetic.config import CLASS_NAMES, TISSUE_CLASSES, SyntheticConfig
from eosin.demo.synthetic.texture import Image, Stain, draw_tissue

Rgb = npt.NDArray[np.uint8]
Polygon = npt.NDArray[np.float64]
_ISLAND_PITCH_UM = 340.0
_OUTLINE_POINTS = 96
_REGION_SPREAD = 0.16
_NOISE_PX = 512
_MARGIN_PX = 4


class Island(NamedTuple):
    """Tissue of one class; `polygon_px` is (n, 2) x, y in the level-0 frame, not closed."""

    name: str
    polygon_px: Polygon


def plan_slide(seed: int, config: SyntheticConfig) -> tuple[Island, ...]:
    """What lies on the slide of `seed`: one island in each cell of a grid of about 340 µm, at least two;
    classes are dealt out in turn."""
    rng = np.random.default_rng([seed, 0])
    longer = max(config.width_px, config.height_px)
    pitch = min(_ISLAND_PITCH_UM / config.mpp, longer / 2)
    columns, rows = (max(1, round(side / pitch)) for side in (config.width_px, config.height_px))
    cell = np.array([config.width_px / columns, config.height_px / rows])
    corners = [np.array([column, row]) * cell for row in range(rows) for column in range(columns)]
    names = _dealt(len(corners), rng)
    return tuple(
        Island(name, corner + cell * _outline(rng)) for name, corner in zip(names, corners, strict=True)
    )


def _dealt(num: int, rng: np.random.Generator) -> list[str]:
    """`num` class names, each as often as every other (±1), in random order."""
    rounds = -(-num // len(CLASS_NAMES))
    return [str(name) for _ in range(rounds) for name in rng.permutation(CLASS_NAMES)][:num]


def _outline(rng: np.random.Generator) -> Polygon:
    """A smooth, roughly square outline inside the unit square, (96, 2)."""
    phi = np.linspace(0, 2 * np.pi, _OUTLINE_POINTS, endpoint=False)
    square = (np.abs(np.cos(phi)) ** 3.5 + np.abs(np.sin(phi)) ** 3.5) ** (-1 / 3.5)
    wobble = np.zeros_like(phi)
    for wave in range(2, 9):
        wobble += rng.normal(0, 0.11 / wave) * np.cos(wave * phi + rng.uniform(0, 2 * np.pi))
    radius = np.clip(rng.uniform(0.37, 0.44) * square * (1 + wobble), 0.05, None)
    points = (
        np.stack([radius * np.cos(phi), radius * np.sin(phi)], axis=1) + 0.5 + rng.uniform(-0.03, 0.03, 2)
    )
    return np.clip(points, 0.02, 0.98)


def draw_slide(seed: int, config: SyntheticConfig) -> Rgb:
    """Level-0 pixels of the slide of `seed`, (height_px, width_px, 3) uint8 RGB."""
    islands = plan_slide(seed, config)
    rng = np.random.default_rng([seed, 1])
    canvas = draw_glass(config.width_px, config.height_px, rng)
    stain = Stain.of_slide(rng)
    for island, child in zip(islands, rng.spawn(len(islands)), strict=True):
        _add_tissue(canvas, island, stain, config.mpp, child)
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


def _add_tissue(canvas: Rgb, island: Island, stain: Stain, mpp: float, rng: np.random.Generator) -> None:
    window, mask = _mask(canvas, island.polygon_px, feather_px=1.0 / mpp)
    local = stain.varied(rng, _REGION_SPREAD)
    height_px, width_px = mask.shape
    density = draw_tissue(width_px, height_px, mpp, TISSUE_CLASSES[island.name], local, rng)
    _transmit(window, density * mask[..., None])


def _transmit(light: Rgb, density: Image) -> None:
    """Darkens `light` in place by `density`."""
    passed = cv2.exp(-density)
    cv2.multiply(light, passed, dst=light, dtype=cv2.CV_8U)


def _mask(canvas: Rgb, polygon: Polygon, *, feather_px: float) -> tuple[Rgb, Image]:
    """The part of `canvas` round `polygon` (a view) and the polygon's soft-edged mask there, in [0, 1]."""
    height_px, width_px = canvas.shape[:2]
    left, top = np.maximum(np.floor(polygon.min(axis=0)).astype(int) - _MARGIN_PX, 0)
    right, bottom = np.minimum(np.ceil(polygon.max(axis=0)).astype(int) + _MARGIN_PX, (width_px, height_px))
    window = canvas[top:bottom, left:right]
    mask = np.zeros(window.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.rint(polygon - (left, top)).astype(np.int32)], 255, cv2.LINE_AA)
    soft = cv2.GaussianBlur(mask, (0, 0), feather_px).astype(np.float32)
    return window, soft / np.float32(255)
