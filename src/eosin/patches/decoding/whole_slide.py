"""Regions of staged slides, in a decoder process, by a library that opens whole slides: OpenSlide, cuCIM."""

import contextlib
import importlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
_NUM_WORKERS = 4


@dataclass(frozen=True)
class SlideRegion:
    """What is read of one slide for one patch."""

    path: Path
    header: SlideHeader
    request: PatchRequest
    box: Box


class RegionReader(Protocol):
    """An open slide."""

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


class RegionsWorker:
    """Keeps the slide open that was read last."""

    def __init__(self, way: OpenSlideFile) -> None:
        self._way = way
        self._path: Path | None = None
        self._opened: RegionReader | None = None
        self._files = contextlib.ExitStack()

    def work(self, regions: Sequence[SlideRegion]) -> list[Pixels | SlideError]:
        """Pixels of each region, or why it has none."""
        return [self._read(region) for region in regions]

    def rest(self) -> None:
        """Close the slide."""
        self._files.close()
        self._path = self._opened = None

    def _read(self, region: SlideRegion) -> Pixels | SlideError:
        try:
            return self._slide(region).read(region.request, region.box)
        except SlideError as error:
            return error

    def _slide(self, region: SlideRegion) -> RegionReader:
        if self._opened is None or region.path != self._path:
            self.rest()
            self._opened = self._files.enter_context(self._way(region.path, region.header))
            self._path = region.path
        return self._opened


class CucimBatches:
    """A `Worker` of cuCIM, of slides that `cucim_is_safe` allows. Keeps the one read last open."""

    def __init__(self, load: Callable[[str], Any], device: int | None) -> None:
        """`load`: cuCIM's CuImage. `device`: the GPU that decodes and on which pixels stay, as tensors
        (untested); None: a CPU, and arrays."""
        self._load = load
        self._device = device
        self._path = ""
        self._image: Any = None

    def work(self, regions: Sequence[SlideRegion]) -> list[Pixels | SlideError]:
        """Pixels of each region, which are all of one slide."""
        found: dict[int, Any] = {}
        groups: OrderedDict[tuple[int, int, int], list[int]] = OrderedDict()
        for place, region in enumerate(regions):
            box = region.box
            groups.setdefault((box.level, box.width_px, box.height_px), []).append(place)
        for (level, width_px, height_px), places in groups.items():
            try:
                image = self._slide(str(regions[places[0]].path))
                corners = [_corner(regions[place]) for place in places]
                pixels = self._read(image, corners, (width_px, height_px), level)
            except (RuntimeError, ValueError) as error:
                found |= dict.fromkeys(places, SlideError("corrupt-tile", f"cuCIM cannot read: {error}"))
            else:
                found |= dict(zip(places, pixels, strict=True))
        return [found[place] for place in range(len(regions))]

    def rest(self) -> None:
        """Let go of the slide."""
        self._image, self._path = None, ""

    def _slide(self, path: str) -> Any:
        if path != self._path:
            self._image, self._path = self._load(path), path
        return self._image

    def _read(self, image: Any, corners: list[tuple[int, int]], size: tuple[int, int], level: int) -> Any:
        """uint8 [n, h, w, 3] of the regions, in order."""
        device = "cpu" if self._device is None else "cuda"
        if len(corners) == 1:
            region = image.read_region(corners[0], size, level=level, device=device)
            return self._pixels(region)[None]
        batches = image.read_region(
            [value for corner in corners for value in corner], size, level=level, device=device,
            batch_size=len(corners), num_workers=_NUM_WORKERS,
        )  # fmt: skip
        (pixels,) = (self._pixels(batch) for batch in batches)
        return pixels

    def _pixels(self, image: Any) -> Any:
        if self._device is None:
            return np.ascontiguousarray(np.asarray(image)[..., :3])
        import torch

        return torch.as_tensor(image, device=f"cuda:{self._device}")[..., :3].contiguous()


def _corner(region: SlideRegion) -> tuple[int, int]:
    """cuCIM cuts the level-0 corner down to a pixel of the level: rounded up, it comes back as asked."""
    down = region.header.levels[region.box.level].downsample
    return math.ceil(region.box.x_px * down), math.ceil(region.box.y_px * down)
