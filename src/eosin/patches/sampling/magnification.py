"""The magnification of a patch, among those that its slide offers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from eosin.patches.sampling.counter_rng import Float64

# A step of the continuous draw: logarithms differ in the last bit between machines, what is drawn must not.
_DECIMALS = 6


class Magnifications(Protocol):
    """The magnifications that each slide offers."""

    def pick(self, slide: int, uniform: float) -> float:
        """The mpp at `uniform` in [0, 1) on a slide (a position in `Eligible.rows`)."""
        ...


@dataclass(frozen=True)
class DiscreteMagnifications:
    """A choice of the wanted values, by weight, among those that the slide offers."""

    values: tuple[float, ...]
    cumulative: Float64
    """Cumulative weights of `values` on each slide, ending at 1; flat where it lacks one, [n, k]."""

    def pick(self, slide: int, uniform: float) -> float:
        """As `Magnifications`."""
        return self.values[int(np.searchsorted(self.cumulative[slide], uniform, side="right"))]


@dataclass(frozen=True)
class ContinuousMagnifications:
    """Uniform in log mpp over what the slide offers of the wanted range, so that no scale is between two."""

    bounds: npt.NDArray[np.float64]
    """Finest and coarsest mpp of each slide, [n, 2]."""

    def pick(self, slide: int, uniform: float) -> float:
        """As `Magnifications`."""
        finest, coarsest = (float(bound) for bound in self.bounds[slide])
        drawn = round(finest * math.exp(uniform * math.log(coarsest / finest)), _DECIMALS)
        return min(max(drawn, finest), coarsest)
