"""Predictor of I-JEPA: a small transformer from the student's patch tokens to the teacher's."""

from __future__ import annotations

from timm.models.vision_transformer import Block
from torch import Tensor, nn


class JepaPredictor(nn.Module):
    """`depth` blocks of width `dim` over all patches of a crop, hidden ones among them.

    Hidden patches stand in the student as mask tokens at their places, so tokens bring their positions and
    the predictor has none of its own, as in nanopath; in I-JEPA hidden patches are left out and join here.
    """

    def __init__(self, in_dim: int, out_dim: int, dim: int, depth: int) -> None:
        super().__init__()
        num_heads = next(heads for heads in range(max(dim // 64, 1), 0, -1) if dim % heads == 0)
        self.embed = nn.Linear(in_dim, dim)
        self.blocks = nn.Sequential(*(Block(dim, num_heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.proj = nn.Linear(dim, out_dim)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """[n, patches, out_dim] of `patches` [n, patches, in_dim]."""
        predicted: Tensor = self.proj(self.norm(self.blocks(self.embed(patches))))
        return predicted
