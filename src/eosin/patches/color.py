"""Colour and stain jitter as one 3 × 3 matrix a crop each.

Brightness, contrast, saturation, hue and the loss of colour are all affine in RGB, and a jitter of the
stains is affine in optical density; so a crop costs two small matrix products whatever is drawn.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from eosin.patches.sampling.counter_rng import Float64

LUMA: Float64 = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
# Optical densities of haematoxylin and eosin (Ruifrok and Johnston 2001), and what is normal to both.
_H = np.array([0.650, 0.704, 0.286])
_E = np.array([0.072, 0.990, 0.105])
_STAINS: Float64 = np.stack([v / np.linalg.norm(v) for v in (_H, _E, np.cross(_H, _E))])
_MIN_INTENSITY = 1.0 / 255.0


def jitter_matrices(gain: Float64, saturation: Float64, turns: Float64, gray: Float64) -> Float64:
    """Float64 [m, 3, 3] for RGB columns: gain, then saturation, then hue, then grey where `gray` is 1.

    All arguments [m]. `gain` is brightness × contrast; `turns` turns the hue in the plane of I and Q,
    in whole turns.
    """
    identity: Float64 = np.eye(3)
    luma: Float64 = np.tile(LUMA, (3, 1))
    s, g = saturation[:, None, None], gray[:, None, None]
    saturate = s * identity + (1.0 - s) * luma
    grayscale = (1.0 - g) * identity + g * luma
    return np.asarray(gain[:, None, None] * (grayscale @ _hue_matrices(turns) @ saturate))


def stain_matrices(strength: Float64) -> Float64:
    """Float64 [m, 3, 3] for optical densities: stain k of crop i is multiplied by strength[i, k]."""
    return np.asarray((_STAINS.T * strength[:, None, :]) @ np.linalg.inv(_STAINS.T))


def stain_offsets(amount: Float64) -> Float64:
    """Float64 [m, 3]: optical density added to R, G, B for `amount` [m, 3] more of each stain."""
    return np.asarray(amount @ _STAINS)


def apply_stain(crops: Tensor, matrices: Tensor, offsets: Tensor) -> Tensor:
    """Crops float32 [m, 3, h, w] in [0, 1] with `matrices` [m, 3, 3], `offsets` [m, 3] applied to −log."""
    density = crops.clamp(min=_MIN_INTENSITY).log_().flatten(2)
    return torch.baddbmm(-offsets[:, :, None], matrices, density).exp_().clamp_(max=1.0).view_as(crops)


def apply_jitter(crops: Tensor, matrices: Tensor, gray_share: Tensor) -> Tensor:
    """Crops float32 [m, 3, h, w] in [0, 1] with `matrices` applied, clamped to [0, 1].

    `gray_share` [m] is (1 − contrast) × brightness: contrast mixes in so much of the crop's mean luma.
    """
    flat = crops.flatten(2)
    # Not made on the device, which would wait for all that it was asked to do before.
    luma = torch.from_numpy(LUMA).to(crops.dtype).to(crops.device, non_blocking=True)
    offset = gray_share * (flat.mean(-1) * luma).sum(-1)
    return torch.baddbmm(offset[:, None, None], matrices, flat).clamp_(0.0, 1.0).view_as(crops)


def _hue_matrices(turns: Float64) -> Float64:
    angle = 2.0 * np.pi * turns
    turn = np.zeros((len(turns), 3, 3))
    turn[:, 0, 0] = 1.0
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angle)
    turn[:, 1, 2], turn[:, 2, 1] = -np.sin(angle), np.sin(angle)
    return np.asarray(np.linalg.inv(_YIQ) @ turn @ _YIQ)
