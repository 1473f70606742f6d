"""Patch kernel alignment (PaKA, arXiv 2509.05606): student and teacher relate an image's patches alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-12


def kernel_misalignment(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ over images of 1 − CKA of the linear kernels of their patches; float32 scalar, each in 0 … 1.

    `student`, `teacher`: [n, patches, dim] of the same places; the dims may differ. Centred kernel alignment
    (Cortes et al. 2012) is ⟨K_s, K_t⟩ ÷ (‖K_s‖ ‖K_t‖) of centred kernels, and ⟨ZZᵀ, YYᵀ⟩ = ‖ZᵀY‖² of centred
    features, so that no kernel is made. It knows no scale: features are brought to norm 1 first, so that
    those of a head that begins small do not vanish.
    """
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = (_centred_unit(tokens.float()) for tokens in (student, teacher))
        crossed = (ours.mT @ theirs).square().sum((1, 2))
        own, other = ((unit.mT @ unit).square().sum((1, 2)) for unit in (ours, theirs))
        return (1 - crossed / (own * other).clamp(min=_EPS).sqrt()).sum()


def _centred_unit(tokens: Tensor) -> Tensor:
    centred = tokens - tokens.mean(1, keepdim=True)
    return F.normalize(centred.flatten(1), dim=1).view_as(centred)
