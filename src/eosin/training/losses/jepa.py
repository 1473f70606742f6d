"""I-JEPA's patch loss (arXiv 2301.08243): a predictor regresses the teacher's tokens of hidden blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def jepa_targets(tokens: Tensor) -> Tensor:
    """Teacher tokens [rows, dim], each normalised to mean 0 and variance 1, float32."""
    with torch.autocast(tokens.device.type, enabled=False):
        return F.layer_norm(tokens.float(), tokens.shape[-1:])


def jepa_sum(predicted: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Σ over hidden patches of weight × the mean smooth L1 over features; float32 scalar.

    `predicted`, `targets` (from `jepa_targets`): [rows, dim]; `weights` [rows]: 1 / the number of hidden
    patches of the crop a row is of.
    """
    with torch.autocast(predicted.device.type, enabled=False):
        losses = F.smooth_l1_loss(predicted.float(), targets, reduction="none").mean(-1)
        return (losses * weights).sum()
