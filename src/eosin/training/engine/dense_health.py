"""Health of dense features: whether neighbouring patches are alike, and patches no copies of their image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = ("patch_locality", "patch_class_cosine")
_MOST_CROPS = 4


@torch.no_grad()
def dense_health(classes: Tensor, patches: Tensor) -> Tensor:
    """Float32 [2], by `NAMES`, of the first crops of class tokens [n, dim] and patch tokens [n, grid², dim].

    `patch_locality`: minus the correlation of two patches' cosine with their distance on the grid: 0 where
    similarity knows no place, as in dense features that have decayed. `patch_class_cosine`: the mean cosine
    of a patch with its image's class token, which rises as they decay (DINOv3, arXiv 2508.10104).
    """
    with torch.autocast(patches.device.type, enabled=False):
        z = F.normalize(patches[:_MOST_CROPS].float(), dim=-1)
        own = F.normalize(classes[:_MOST_CROPS].float(), dim=-1)
        side = math.isqrt(z.shape[1])
        places = torch.arange(side * side, device=z.device)
        grid = torch.stack([places // side, places % side], dim=1).float()
        apart = torch.cdist(grid, grid)
        others = 1.0 - torch.eye(side * side, device=z.device)
        far, alike = _centred(apart[None], others), _centred(z @ z.mT, others)
        spread = alike.square().sum((1, 2)) * far.square().sum((1, 2))
        correlation = (alike * far).sum((1, 2)) / spread.sqrt().clamp(min=1e-12)
        return torch.stack([-correlation.mean(), (z @ own[:, :, None]).mean()])


def _centred(values: Tensor, weights: Tensor) -> Tensor:
    """[n, m, m] less their mean where `weights` is 1; 0 elsewhere."""
    mean = (values * weights).sum((1, 2), keepdim=True) / weights.sum().clamp(min=1)
    return (values - mean) * weights
