"""Patches that are decoded on a GPU and stay there, to the crops and the model. Untested on a GPU.

Tiles are decoded whole (nvImageCodec 0.9 fails on regions of JPEGs), cropped and resized on the device;
cuCIM reads regions of staged slides, those of one size and level in a batch.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from eosin.config.patches import PatchesConfig
from eosin.index.snapshot import Snapshot
from eosin.patches.decoding.parent import Isolation
from eosin.patches.decoding.whole_slide import OpenSlideFile, SlideRegion
from eosin.patches.geometry import box_of
from eosin.patches.reading.read_plan import ReadPlan
from eosin.patches.reading.reader import PatchReader, tiles_of
from eosin.patches.reading.sources import ByteSource
from eosin.patches.reading.stage import StagePool, path_in
from eosin.patches.request import PatchRequest, on_host
from eosin.slides.errors import SlideError, absent_or_changed
from eosin.storage import NotFound, ObjectChanged

_WHITE = 255


class DeviceReader(PatchReader):
    """As `PatchReader`; a patch is a uint8 tensor [patch_px, patch_px, 3] on `device`.

    Within 3 levels of the CPU path: decoders round differently. On a CPU device (for tests) within 1.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        config: PatchesConfig,
        source: ByteSource,
        pool: StagePool | None,
        *,
        device: torch.device,
    ) -> None:
        super().__init__(snapshot, config, source, pool)
        self.device = device
        if device.type == "cuda":
            # Tiles that stay on the device are the decoder's to hand over; the cache is for host memory.
            self._isolated.close()
            self._isolated = Isolation(config, device=device.index or 0)
            if config.decoder == "nvimgcodec":
                self._decoder = self._isolated.tiles("nvimgcodec")
            else:
                self._cucim = self._isolated.slides("cucim")
        self._in_parts = False

    def empty(self, num: int) -> Any:
        """Room for `num` patches: uint8 [num, patch_px, patch_px, 3] on the device."""
        side_px = self.config.patch_px
        return torch.empty((num, side_px, side_px, 3), dtype=torch.uint8, device=self.device)

    def _assemble(self, plan: ReadPlan, tiles: Any, patch: Any) -> SlideError | None:
        try:
            found = tiles_of(plan, tiles)
        except SlideError as error:
            return error
        shape = (plan.box.height_px, plan.box.width_px, 3)
        region = torch.full(shape, _WHITE, dtype=torch.uint8, device=self.device)
        for tile, part in zip(found, plan.parts, strict=True):
            if tile is not None:
                part.of_region(region)[:] = part.of_tile(self._tensor(tile))  # type: ignore[arg-type]  # a tensor is cut like an array
        patch.copy_(resize_on_device(region, self.config.patch_px))
        return None

    def _read_slide(
        self, way: OpenSlideFile, slide: int, requests: dict[int, PatchRequest], patches: Any
    ) -> dict[int, SlideError | None]:
        """All regions of a slide in one message, so that its library can read them together."""
        assert self._pool is not None
        header = self.snapshot.rows[slide].header
        name = "cucim" if way is self._cucim else "openslide"
        try:
            with self._pool.use(header.objects) as folder:
                path = path_in(folder, header.objects, 0)
                regions = [
                    SlideRegion(path, header, request, self._box(request)) for request in requests.values()
                ]
                found = self._isolated.regions(name, regions)
        except (NotFound, ObjectChanged) as error:
            return dict.fromkeys(requests, absent_or_changed(header.objects[0].key, error))
        except SlideError as error:
            return dict.fromkeys(requests, error)
        return self._put(list(requests), found, patches)

    def _put(self, places: Sequence[int], found: Sequence[Any], patches: Any) -> dict[int, SlideError | None]:
        errors: dict[int, SlideError | None] = {}
        for place, region in zip(places, found, strict=True):
            errors[place] = region if isinstance(region, SlideError) else None
            if not isinstance(region, SlideError):
                patches[place].copy_(resize_on_device(self._tensor(region), self.config.patch_px))
        return errors

    def _box(self, request: PatchRequest) -> Any:
        header = self.snapshot.rows[request.slide].header
        return box_of(request, header, self.config.patch_px, self.config.mpp_tolerance)

    def _on_host(self, pixels: Any) -> Any:
        return on_host(pixels)

    def _tensor(self, pixels: Any) -> Tensor:
        found = pixels if isinstance(pixels, Tensor) else torch.from_numpy(pixels)
        return found.to(self.device, non_blocking=True)


def resize_on_device(region: Tensor, side_px: int) -> Tensor:
    """uint8 [h, w, 3] as uint8 [side_px, side_px, 3], within one level of what OpenCV gives.

    Area averaging and linear interpolation are separable, so they are two matrix products in float32.
    """
    height, width = region.shape[:2]
    if (height, width) == (side_px, side_px):
        return region
    weights = _area if min(height, width) >= side_px else _linear
    rows = weights(height, side_px, region.device)
    columns = weights(width, side_px, region.device)
    narrow = rows @ region.float().reshape(height, width * 3)
    wide = torch.einsum("yxc,ox->yoc", narrow.view(side_px, width, 3), columns)
    return wide.add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _area(in_px: int, out_px: int, device: torch.device) -> Tensor:
    """Float32 [out_px, in_px]: the share of each input pixel that an output pixel covers."""
    scale = in_px / out_px
    start = torch.arange(out_px, dtype=torch.float64)[:, None] * scale
    pixel = torch.arange(in_px, dtype=torch.float64)[None, :]
    covered = (torch.minimum(start + scale, pixel + 1) - torch.maximum(start, pixel)).clamp(min=0)
    return (covered / covered.sum(1, keepdim=True)).float().to(device)


@lru_cache(maxsize=64)
def _linear(in_px: int, out_px: int, device: torch.device) -> Tensor:
    """Float32 [out_px, in_px]: linear interpolation between pixel centres, the edge repeated."""
    place = (torch.arange(out_px, dtype=torch.float64) + 0.5) * (in_px / out_px) - 0.5
    place = place.clamp(0, in_px - 1)
    pixel = torch.arange(in_px, dtype=torch.float64)
    return (1 - (place[:, None] - pixel[None, :]).abs()).clamp(min=0).float().to(device)
