"""Losses between patch tokens of student and teacher: Gram anchoring, I-JEPA, patch kernel alignment."""

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
