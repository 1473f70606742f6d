"""A timm ViT that can mask tokens and take any crop size, its own weights untouched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eosin.config.model import ModelConfig
from eosin.models.arch import create_vit, patch_size_of, resolved_arch_args
from eosin.models.block import PackedBlock, run_packed
from eosin.models.compiling import compiled
from eosin.models.drop_path import KEEP_ALL, DropPath, Layout, pack_drops


class CropGroup(NamedTuple):
    """Crops of one size. `images`: [n, 3, H, W]; `masks`: bool [n, patches], row-major, True where the
    mask token stands in the patch's place; `wanted`: only so many tokens of each are asked for, the class
    token first (None: all), so that the last MLP need not run on the others."""

    images: Tensor
    masks: Tensor | None = None
    drop: DropPath = KEEP_ALL
    wanted: int | None = None


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
        self.checkpoint_activations = False
        """Recompute each block in the backward pass: a third more FLOPs for a depth-th of the memory."""

    @property
    def num_features(self) -> int:
        """Width of a token."""
        return int(self.vit.num_features)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.vit.blocks)

    @property
    def patch_size(self) -> int:
        """Side of a patch, px."""
        return patch_size_of(self.vit)

    @property
    def num_prefix_tokens(self) -> int:
        """Class and register tokens, which come before the patches."""
        return int(self.vit.num_prefix_tokens)

    def forward(
        self, images: Tensor | Sequence[CropGroup], masks: Tensor | None = None, drop: DropPath = KEEP_ALL
    ) -> Any:
        """Normalised tokens [n, prefix + patches, dim] of `images` [n, 3, H, W], or those `CropGroup` wants.

        Of several `CropGroup`, a list with one such tensor a size: all go through the blocks as one packed
        sequence, which gives the same tokens in fewer and larger operations.
        """
        if isinstance(images, Tensor):
            return self._packed([CropGroup(images, masks, drop)])[0]
        return self._packed(images)

    def compile_blocks(self, **options: Any) -> None:
        """Compile the blocks in place. They share one graph a kind of pass, so depth costs nothing."""
        run = compiled(run_packed, **options)
        for block in self.vit.blocks:
            block.run = run

    def _packed(self, groups: Sequence[CropGroup]) -> list[Tensor]:
        embedded = [self._embed(crops) for crops in groups]
        layout: Layout = tuple((x.shape[0], x.shape[1]) for x in embedded)
        wanted: Layout = tuple(
            (num, crops.wanted or tokens) for crops, (num, tokens) in zip(groups, layout, strict=True)
        )
        x = torch.cat([tokens.flatten(0, 1) for tokens in embedded])
        dropped = [crops.drop for crops in groups]
        drops = pack_drops(dropped, layout, 2 * self.depth)
        # All blocks share one compiled function, and so does the last where every token is wanted.
        ends: list[Layout] = []
        if wanted != layout:
            drops[-1] = pack_drops(dropped, wanted, 2 * self.depth)[-1]
            ends = [wanted]
        *inner, last = self.vit.blocks
        for i, block in enumerate(inner):
            x = self._block(block, x, layout, drops[2 * i], drops[2 * i + 1])
        x = self._block(last, x, layout, drops[-2], drops[-1], *ends)
        parts = self.vit.norm(x).split([num * tokens for num, tokens in wanted])
        return [part.unflatten(0, size) for part, size in zip(parts, wanted, strict=True)]

    def _embed(self, crops: CropGroup) -> Tensor:
        x = self.vit.patch_embed(crops.images)
        if crops.masks is not None:
            grid = crops.masks.view(*x.shape[:3], 1)
            x = torch.where(grid, self.mask_token.to(x.dtype).view(1, 1, 1, -1), x)
        return self.vit.norm_pre(self.vit.patch_drop(self.vit._pos_embed(x)))  # type: ignore[no-any-return]

    def _block(self, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
        if self.checkpoint_activations and torch.is_grad_enabled():
            # Nothing in a block is drawn at random: what is dropped comes from outside.
            return checkpoint(block, x, *args, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
        return block(x, *args)  # type: ignore[no-any-return]


def build_backbone(config: ModelConfig, global_px: int, *, meta: bool = False) -> Backbone:
    """The backbone of `config` for global crops of `global_px`, as torch's global generator draws it.

    Raises `UserError` for an unknown architecture (with the nearest names) or arguments it rejects.
    """
    vit = create_vit(config.arch, resolved_arch_args(config, global_px), meta=meta, block_fn=PackedBlock)
    with torch.device("meta" if meta else "cpu"):
        return Backbone(vit)
