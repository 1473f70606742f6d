"""Crop, resize, flip and blur as one matrix per axis.

All four are linear and separable, so a view is `rows @ patch @ columnsᵀ`: an antialiased resize and a
Gaussian blur for the price of two batched matrix products, with no gather and the same code on any
device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def axis_matrices(
    start_px: Tensor, length_px: Tensor, flip: Tensor, sigma_px: Tensor, in_px: int, out_px: int
) -> Tensor:
    """Float32 [m, out_px, in_px]: row i holds the weights of the input pixels in output pixel i.

    `start_px`, `length_px` [m]: the crop's interval on this axis, in input pixels; `flip` [m] bool;
    `sigma_px` [m]: blur in output pixels, 0 for none. The resize is Keys' cubic (1981) with a = −0.5, as wide
    as the larger of the two pixels: the antialiased bicubic of Pillow and torch, by which DINO and DINOv2
    resize their crops. Rows sum to 1; some weights are negative, so what comes of them is to be clamped.
    """
    inputs = torch.arange(in_px, device=start_px.device, dtype=torch.float32) + 0.5
    outputs = torch.arange(out_px, device=start_px.device, dtype=torch.float32) + 0.5
    scale = (length_px / out_px)[:, None, None]
    places = torch.where(flip[:, None], out_px - outputs, outputs)
    centers = start_px[:, None, None] + places[:, :, None] * scale
    resize = _cubic((inputs - centers).abs() / scale.clamp(min=1.0))
    resize = resize / resize.sum(-1, keepdim=True)
    return torch.bmm(_blur_matrices(sigma_px, out_px), resize)


def views(
    patches: Tensor, rows: Tensor, columns: Tensor, num_views: int
) -> Tensor:  # fmt: skip
    """Float32 [num_views, n, 3, out, out] from `patches` float32 [n, H, W, 3].

    `rows`, `columns` [num_views * n, out, H or W], view-major, from `axis_matrices`.
    """
    n, height, width, _ = patches.shape
    out_px = rows.shape[1]
    by_sample = rows.view(num_views, n, out_px, height).transpose(0, 1).reshape(n, -1, height)
    narrow = torch.bmm(by_sample, patches.reshape(n, height, width * 3))
    narrow = narrow.view(n, num_views, out_px, width, 3).permute(1, 0, 4, 2, 3)
    flat = narrow.reshape(num_views * n, 3 * out_px, width)
    return torch.bmm(flat, columns.transpose(1, 2)).view(num_views, n, 3, out_px, out_px)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = −0.5 at `distance` ≥ 0: 1 at 0, 0 from 2 on."""
    # The two pieces of the kernel, in powers of what is left of 2 and of 1: few passes over a large tensor.
    left = (2.0 - distance).clamp_(min=0.0)
    inner = (left - 1.0).clamp_(min=0.0)
    far = (left - 1.0).mul_(0.5).mul_(left.square_())
    return far.addcmul_(inner.square(), inner.mul_(-2.0).add_(1.0))


def _blur_matrices(sigma_px: Tensor, side_px: int) -> Tensor:
    """Float32 [m, side_px, side_px]: Gaussian weights, rows summing to 1; the identity where sigma is 0."""
    place = torch.arange(side_px, device=sigma_px.device, dtype=torch.float32)
    distance = place[None, :] - place[:, None]
    # The floors keep out a division by 0 and denormal weights, which cost more time than all the rest;
    # what they add is below 1e-13.
    exponent = -0.5 * (distance / sigma_px.clamp(min=0.05)[:, None, None]) ** 2
    weights = torch.exp(exponent.clamp(min=-30.0))
    return weights / weights.sum(-1, keepdim=True)
