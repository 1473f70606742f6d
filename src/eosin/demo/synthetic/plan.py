"""Plan of a synthetic slide, decided from the seed before a pixel is drawn; and that as ground truth."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from eosin.demo.synthetic.config import SyntheticConfig

Polygon = npt.NDArray[np.float64]
_ISLAND_PITCH_UM = 340.0
_OUTLINE_POINTS = 96


@dataclass(frozen=True)
class AnnotatedRegion:
    """One outlined area; `polygon_px` is (n, 2) x, y in the level-0 frame, not closed."""

    kind: Literal["tissue", "pen", "blur"]
    name: str
    """Tissue class, or `pen mark`, `out of focus`."""
    polygon_px: Polygon


@dataclass(frozen=True)
class SlideTruth:
    """What is on a slide. Wholly decided by (seed, config)."""

    seed: int
    width_px: int
    height_px: int
    mpp: float
    regions: tuple[AnnotatedRegion, ...]

    @property
    def islands(self) -> tuple[AnnotatedRegion, ...]:
        """The tissue alone."""
        return tuple(region for region in self.regions if region.kind == "tissue")

    def to_geojson(self) -> bytes:
        """A QuPath-like FeatureCollection; coordinates are level-0 pixels, y down."""
        features = [_feature(region) for region in self.regions]
        return (json.dumps({"type": "FeatureCollection", "features": features}, indent=1) + "\n").encode()


def plan_slide(seed: int, config: SyntheticConfig) -> SlideTruth:
    """The truth of the slide that `write_slide(path, seed=seed, config=config)` writes."""
    rng = np.random.default_rng([seed, 0])
    islands = _islands(config, rng)
    artefacts = _artefacts(islands, config, rng)
    return SlideTruth(seed, config.width_px, config.height_px, config.mpp, (*islands, *artefacts))


def _islands(config: SyntheticConfig, rng: np.random.Generator) -> tuple[AnnotatedRegion, ...]:
    """One island in each cell of a grid of about 340 µm, at least two; classes are dealt out in turn."""
    longer = max(config.width_px, config.height_px)
    pitch = min(_ISLAND_PITCH_UM / config.mpp, longer / 2)
    columns, rows = (max(1, round(side / pitch)) for side in (config.width_px, config.height_px))
    cell = np.array([config.width_px / columns, config.height_px / rows])
    corners = [np.array([column, row]) * cell for row in range(rows) for column in range(columns)]
    names = _dealt(config.classes, len(corners), rng)
    return tuple(
        AnnotatedRegion("tissue", name, corner + cell * _outline(rng))
        for name, corner in zip(names, corners, strict=True)
    )


def _dealt(classes: tuple[str, ...], num: int, rng: np.random.Generator) -> list[str]:
    """`num` class names, each as often as every other (±1), in random order."""
    rounds = -(-num // len(classes))
    return [str(name) for _ in range(rounds) for name in rng.permutation(classes)][:num]


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


def _artefacts(
    islands: tuple[AnnotatedRegion, ...], config: SyntheticConfig, rng: np.random.Generator
) -> tuple[AnnotatedRegion, ...]:
    """A pen stroke and a blurred area, each on some slides, both reaching into the tissue."""
    has_pen, has_blur = rng.random() < config.pen_marks, rng.random() < config.blurred_areas
    size = np.array([config.width_px, config.height_px], dtype=np.float64)
    found = []
    if has_blur:
        island = islands[int(rng.integers(len(islands)))].polygon_px
        found.append(
            AnnotatedRegion(
                "blur", "out of focus", _ellipse(island.mean(axis=0), 0.28 * np.ptp(island, axis=0))
            )
        )
    if has_pen:
        found.append(AnnotatedRegion("pen", "pen mark", np.clip(size * _stroke(rng), 0, size)))
    return tuple(found)


def _ellipse(centre: Polygon, half_axes: Polygon) -> Polygon:
    phi = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.asarray(centre + half_axes * np.stack([np.cos(phi), np.sin(phi)], axis=1), np.float64)


def _stroke(rng: np.random.Generator) -> Polygon:
    """A bent stroke across part of the unit square, as a closed band."""
    t = np.linspace(0, 1, 24)
    start, end = rng.uniform(0.05, 0.35, 2), rng.uniform(0.6, 0.95, 2)
    if rng.random() < 0.5:
        start[1], end[1] = 1 - start[1], 1 - end[1]
    line = start + t[:, None] * (end - start)
    normal = np.array([start[1] - end[1], end[0] - start[0]]) / np.linalg.norm(end - start)
    line = line + (rng.uniform(-0.12, 0.12) * np.sin(np.pi * t))[:, None] * normal
    half_width = (0.012 + 0.004 * np.sin(7 * t))[:, None] * normal
    return np.concatenate([line - half_width, (line + half_width)[::-1]])


def _feature(region: AnnotatedRegion) -> dict[str, Any]:
    ring = [[round(float(x), 2), round(float(y), 2)] for x, y in region.polygon_px]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": region.name},
            "kind": region.kind,
        },
    }
