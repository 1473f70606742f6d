"""Uniformity terms (KoLeo, KDE), which spread the class-token features of a set over the sphere."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-8


def koleo(features: Tensor) -> Tensor:
    """−mean log(‖z − NN(z)‖ + 1e-8) of the L2-normalised rows of `features` [..., n, dim], n ≥ 2.

    Kozachenko-Leonenko entropy (Sablayrolles et al. 2018), float32 scalar, the mean over sets of n. The
    neighbour in the set is taken by the largest cosine, without gradient through the choice.
    """
    with torch.autocast(features.device.type, enabled=False):
        z = F.normalize(features.float(), eps=_EPS, dim=-1)
        with torch.no_grad():
            cosine = z @ z.mT
            cosine.diagonal(dim1=-2, dim2=-1).fill_(-1)
            nearest = cosine.argmax(dim=-1, keepdim=True)
        distance = F.pairwise_distance(z, z.take_along_dim(nearest, dim=-2), p=2, eps=_EPS)
        return -torch.log(distance + _EPS).mean()


def kde(features: Tensor, concentration: float) -> Tensor:
    """mean_i log mean_{j≠i} exp(κ zᵢ·zⱼ) of the L2-normalised rows of `features` [..., n, dim], n ≥ 2.

    The uniformity of Wang & Isola (2020) under a von Mises-Fisher kernel of concentration κ, float32
    scalar, the mean over sets of n. It falls as features spread, so it is added to the loss with a positive
    weight; the self pair is left out.
    """
    with torch.autocast(features.device.type, enabled=False):
        z = F.normalize(features.float(), eps=_EPS, dim=-1)
        n = z.shape[-2]
        others = ~torch.eye(n, dtype=torch.bool, device=z.device)
        scores = (concentration * (z @ z.mT)).masked_fill(~others, -torch.inf)
        return (scores.logsumexp(dim=-1) - math.log(n - 1)).mean()
