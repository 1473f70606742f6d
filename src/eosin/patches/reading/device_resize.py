"""Resizing on whatever device the pixels lie on, as the CPU path does it: area down, linear up."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


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
