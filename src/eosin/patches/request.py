"""The patch request: a sample named before any pixel of it is read."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class PatchRequest:
    """Sample `index` of step `step`: a square of `patch_px` × `mpp` µm on one slide.

    `x_px`, `y_px`: its top-left corner in the level-0 frame. `attempt` counts the deterministic
    redraws that came before (0: the first draw served).
    """

    step: int
    index: int
    slide: int
    """Row of the slide in the snapshot."""
    x_px: int
    y_px: int
    mpp: float
    attempt: int = 0


@dataclass(frozen=True)
class PatchBatch:
    """Decoded patches, in the order asked for."""

    pixels: Any
    """uint8 [n, patch_px, patch_px, 3], RGB: an array, or a tensor on the device that decoded it."""
    requests: tuple[PatchRequest, ...]


def on_host(pixels: Any) -> npt.NDArray[np.uint8]:
    """An array or tensor of pixels as an array."""
    return pixels if isinstance(pixels, np.ndarray) else np.asarray(pixels.cpu())


def copied(pixels: Any) -> Any:
    """A copy of an array or tensor, where it lies."""
    return pixels.copy() if isinstance(pixels, np.ndarray) else pixels.clone()


class PatchSource(Protocol):
    """Where training gets its patches: a stream over slides, a stored patch set, or a test's array."""

    def batches(self, wanted: Iterable[tuple[int, Sequence[int]]]) -> Iterator[PatchBatch]:
        """One `PatchBatch` for each (step, sample indices) of `wanted`, in order, read ahead of need."""
        ...

    def close(self) -> None:
        """Give back what the source holds."""
        ...
