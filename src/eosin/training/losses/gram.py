"""Gram anchoring (DINOv3, arXiv 2508.10104): patches keep the similarities they had in an earlier teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gram_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ over images of the mean over pairs of patches of (cos_student − cos_teacher)²; float32 scalar.

    `student`, `teacher`: patch tokens [n, patches, dim] of the same images on the same grid; the dims may
    differ. ‖X_S X_Sᵀ − X_G X_Gᵀ‖² ÷ patches² of L2-normalised X, one Gram matrix an image.
    """
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = (F.normalize(tokens.float(), dim=-1) for tokens in (student, teacher))
        difference = torch.baddbmm(theirs @ theirs.mT, ours, ours.mT, beta=-1)
        return difference.square().mean((1, 2)).sum()
