"""A timm ViT that can mask tokens and take any crop size, its own weights untouched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eosin.config.model import ModelConfig
from eosin.models.arch import create_vit, patch_size_of, resolved_arch_args
from eosin.models.drop_path import KEEP_ALL, DropPath


class Backbone(nn.Module):
    """`vit`: the timm model, exported as it is; `mask_token`: ours, used in training only.

    Position embeddings are resampled to the crop's grid (bicubic, antialiased, no offset): the same as
    timm's `dynamic_img_size` and as DINOv2 with antialiasing and offset 0.
    """

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit: Any = vit
        # Zero, as in DINOv2: a masked patch begins as its position alone.
        self.mask_token = nn.Parameter(torch.zeros(1, self.num_features))

    @property
    def num_features(self) -> int:
        return int(self.vit.num_features)

    @property
    def depth(self) -> int:
        return len(self.vit.blocks)

    @property
    def patch_size(self) -> int:
        return patch_size_of(self.vit)

    @property
    def num_prefix_tokens(self) -> int:
        """Class and register tokens, which come before the patches."""
        return int(self.vit.num_prefix_tokens)

    def forward(self, images: Tensor, masks: Tensor | None = None, drop: DropPath = KEEP_ALL) -> Tensor:
        """Normalised tokens [n, prefix + patches, dim] of `images` [n, 3, H, W].

        `masks`: bool [n, patches], row-major; True puts the mask token in the patch's place.
        """
        x = self.vit.patch_embed(images)
        if masks is not None:
            grid = masks.view(*x.shape[:3], 1)
            x = torch.where(grid, self.mask_token.to(x.dtype).view(1, 1, 1, -1), x)
        x = self.vit._pos_embed(x)
        x = self.vit.norm_pre(self.vit.patch_drop(x))
        for i, block in enumerate(self.vit.blocks):
            x = drop.residual(2 * i, x, lambda y, b=block: b.ls1(b.attn(b.norm1(y))))  # type: ignore[misc]
            x = drop.residual(2 * i + 1, x, lambda y, b=block: b.ls2(b.mlp(b.norm2(y))))  # type: ignore[misc]
        return self.vit.norm(x)  # type: ignore[no-any-return]


def build_backbone(config: ModelConfig, global_px: int, *, meta: bool = False) -> Backbone:
    """The backbone of `config` for global crops of `global_px`, as torch's global generator draws it.

    Raises `UserError` for an unknown architecture (with the nearest names) or arguments it rejects.
    """
    vit = create_vit(config.arch, resolved_arch_args(config, global_px), meta=meta)
    with torch.device("meta" if meta else "cpu"):
        return Backbone(vit)
