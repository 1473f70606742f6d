"""Reading regions of a staged copy through a library that opens whole slides: OpenSlide, cuCIM."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from eosin.errors import MissingDependency
from eosin.patches.geometry import Box
from eosin.patches.request import PatchRequest
from eosin.slides.errors import SlideError
from eosin.slides.local import open_local
from eosin.slides.model import SlideHeader

Pixels = npt.NDArray[np.uint8]


class RegionReader(Protocol):
    def read(self, request: PatchRequest, box: Box) -> Pixels:
        """[h, w, 3] RGB of `box`. Raises `SlideError`."""
        ...


OpenSlideFile = Callable[[Path, SlideHeader], contextlib.AbstractContextManager[RegionReader]]


@contextlib.contextmanager
def through_openslide(path: Path, header: SlideHeader) -> Iterator[RegionReader]:
    """Any format OpenSlide knows. Raises `SlideError` where it refuses the file."""
    slide = open_local(path)
    try:
        yield _ByOpenSlide(slide.read_region, header)
    finally:
        slide.close()


def through_cucim(load: Callable[[str], Any]) -> OpenSlideFile:
    """Slides that `cucim_is_safe` allows, through `load` (cuCIM's CuImage)."""

    @contextlib.contextmanager
    def opened(path: Path, header: SlideHeader) -> Iterator[RegionReader]:
        try:
            image = load(str(path))
        except (RuntimeError, ValueError) as error:
            raise SlideError("corrupt-header", f"cuCIM refuses {path.name}: {error}") from error
        yield _ByCucim(image, header)

    return opened


def load_cucim() -> Callable[[str], Any]:
    """cuCIM's CuImage. Raises `MissingDependency` where the library is absent."""
    try:
        loader: Callable[[str], Any] = importlib.import_module("cucim").CuImage
    except ImportError as error:
        raise MissingDependency("cuCIM", "gpu") from error
    return loader


def cucim_is_safe(header: SlideHeader) -> bool:
    """Whether cuCIM reads the slide right.

    It crashes on Deflate, shows some OME-TIFFs in wrong colours and refuses other formats; what is left
    is SVS with JPEG or RGB JPEG 2000 tiles, and generic tiled TIFF with JPEG tiles.
    """
    kinds = {(level.compression, level.color_space) for level in header.levels}
    jpeg = {("jpeg", "ycbcr"), ("jpeg", "rgb")}
    allowed = {"svs": {*jpeg, ("jpeg2000", "rgb")}, "tiff": {("jpeg", "ycbcr")}}
    return (
        header.access == "tiles" and len(header.objects) == 1 and kinds <= allowed.get(header.format, set())
    )


class _ByOpenSlide:
    def __init__(self, read_region: Callable[[int, int, int, int, int], Pixels], header: SlideHeader) -> None:
        self._read_region, self._header = read_region, header

    def read(self, request: PatchRequest, box: Box) -> Pixels:
        # Between two pixels of the level OpenSlide would interpolate: ask for the pixel that the box names.
        down = self._header.levels[box.level].downsample
        return self._read_region(
            round(box.x_px * down), round(box.y_px * down), box.level, box.width_px, box.height_px
        )


class _ByCucim:
    def __init__(self, image: Any, header: SlideHeader) -> None:
        self._image, self._header = image, header

    def read(self, request: PatchRequest, box: Box) -> Pixels:
        # cuCIM cuts the level-0 corner down to a pixel of the level: rounded up, it comes back as asked.
        down = self._header.levels[box.level].downsample
        corner = (math.ceil(box.x_px * down), math.ceil(box.y_px * down))
        try:
            region = self._image.read_region(corner, (box.width_px, box.height_px), level=box.level)
        except (RuntimeError, ValueError) as error:
            raise SlideError("corrupt-tile", f"cuCIM cannot read a region: {error}") from error
        return np.ascontiguousarray(np.asarray(region)[..., :3])
