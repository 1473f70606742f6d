"""Multi-crop views of a patch."""

from __future__ import annotations

from pydantic import Field

from eosin.config.base import Section

Scale = tuple[float, float]


class AugmentConfig(Section):
    global_px: int = Field(default=224, gt=0)
    local_px: int = Field(default=96, gt=0)
    num_local: int = Field(default=8, ge=0)
    global_scale: Scale = (0.32, 1.0)
    """Area of a global crop as a share of the patch."""
    local_scale: Scale = (0.05, 0.32)
    rotate: bool = True
    """Rotations by 90° and flips: tissue has no up."""
    color_jitter: float = Field(default=0.8, ge=0, le=1)
    """Probability of brightness / contrast / saturation / hue jitter."""
    stain_jitter: float = Field(default=0.05, ge=0)
    """Standard deviation of the jitter of haematoxylin, eosin and residual in optical density."""
    grayscale: float = Field(default=0.2, ge=0, le=1)
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """Probability of a Gaussian blur on the first global, the second global and every local crop."""
    solarize: float = Field(default=0.0, ge=0, le=1)
    """Probability on the second global crop; off for H&E."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
