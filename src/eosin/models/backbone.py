"""A timm ViT over crops of several sizes at once, which can mask tokens; its own weights untouched."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eosin.config.model import ModelConfig
from eosin.models.arch import OfVit, create_vit, import_timm, is_rotary, resolved_arch_args
from eosin.models.device import compiled
from eosin.models.drop_path import KEEP_ALL, KEEP_BRANCH, BranchDrop, DropPath, Layout, pack_drops

import_timm()  # first, since timm may need torchvision's operators defined

from timm.layers import apply_rot_embed_cat  # noqa: E402
from timm.models.eva import EvaBlock  # noqa: E402
from timm.models.vision_transformer import Block  # noqa: E402

Rotations = tuple[Tensor, ...]
"""Of each size of crops, sines beside cosines [patches, 2 · head_dim]; empty where positions are added."""


def run_packed(
    block: Any,
    x: Tensor,
    layout: Layout,
    attention_drop: BranchDrop,
    mlp_drop: BranchDrop,
    wanted: Layout | None = None,
    rotations: Rotations = (),
) -> Tensor:
    """One block over packed tokens [all tokens, dim]; a function of the block, so that all share its code.

    `wanted`: the layout of what comes out, the first tokens of each crop (None: all); `mlp_drop` fits it.
    `rotations`: of each size, where positions are rotary.
    """

    def attention(y: Tensor, kept: Layout) -> Tensor:
        branch: Tensor = block.scaled(1, packed_attention(block.attn, block.norm1(y), kept, rotations))
        return branch

    def mlp(y: Tensor, kept: Layout) -> Tensor:
        branch: Tensor = block.scaled(2, block.mlp(block.norm2(y)))
        return branch

    x = _residual(x, attention_drop, layout, attention)
    if wanted is not None:
        x = _first_tokens(x, layout, wanted)
    return _residual(x, mlp_drop, layout, mlp)


def packed_attention(attention: Any, x: Tensor, layout: Layout, rotations: Rotations = ()) -> Tensor:
    """timm's `Attention` or `EvaAttention` over `x` [all tokens, dim]: tokens see their own crop only."""
    gate = attention.gate(x).sigmoid() if getattr(attention, "gate", None) is not None else None
    sizes = [num * tokens for num, tokens in layout]
    products = attention.qkv(x).split(sizes) if not rotations else _rotary_qkv(attention, x).split(sizes)
    parts = [
        _attend(attention, qkv.view(num, tokens, 3, attention.num_heads, -1), rotation)
        for qkv, (num, tokens), rotation in zip(
            products, layout, rotations or [None] * len(layout), strict=True
        )
    ]
    y = parts[0] if len(parts) == 1 else torch.cat(parts)
    y = attention.norm(y) if hasattr(attention, "norm") else y
    projected: Tensor = attention.proj(y if gate is None else y * gate)
    return projected


def _rotary_qkv(attention: Any, x: Tensor) -> Tensor:
    """As `EvaAttention`, whose keys have no bias."""
    if attention.q_bias is None:
        plain: Tensor = attention.qkv(x)
        return plain
    bias = torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias])
    return F.linear(x, attention.qkv.weight, bias)


def _attend(attention: Any, qkv: Tensor, rotation: Tensor | None) -> Tensor:
    """[n · tokens, heads · head_dim] of queries, keys and values [n, tokens, 3, heads, head_dim]."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    query, key = attention.q_norm(query), attention.k_norm(key)
    if rotation is not None:
        query, key = (_rotated(attention, part, rotation).to(value.dtype) for part in (query, key))
    y = F.scaled_dot_product_attention(query, key, value)
    return y.transpose(1, 2).reshape(-1, qkv.shape[3] * qkv.shape[4])


def _rotated(attention: Any, x: Tensor, rotation: Tensor) -> Tensor:
    """`x` [n, heads, tokens, head_dim] with its patches turned; class and register tokens have no place."""
    prefix, patches = x.tensor_split([attention.num_prefix_tokens], dim=2)
    return torch.cat([prefix, apply_rot_embed_cat(patches, rotation, half=attention.rotate_half)], dim=2)


def _first_tokens(x: Tensor, layout: Layout, wanted: Layout) -> Tensor:
    """Of packed tokens, the first of each crop that `wanted` has."""
    parts = torch.split(x, [num * tokens for num, tokens in layout])
    kept = [
        part if size == fewer else part.view(*size, -1)[:, : fewer[1]].flatten(0, 1)
        for part, size, fewer in zip(parts, layout, wanted, strict=True)
    ]
    return torch.cat(kept)


def _residual(
    x: Tensor, drop: BranchDrop, layout: Layout, branch: Callable[[Tensor, Layout], Tensor]
) -> Tensor:
    """x + branch(x), with the branch dropped for some crops."""
    if drop.tokens is not None:
        assert drop.scale is not None and drop.layout is not None
        y = branch(x.index_select(0, drop.tokens), drop.layout) * drop.scale
        return x.index_add(0, drop.tokens, y.to(x.dtype))
    y = branch(x, layout)
    return x + y if drop.scale is None else x + y * drop.scale.to(y.dtype)


class Packed:
    """Of a timm block, parameters and names unchanged, what takes a packed sequence.

    Without `layout` it is timm's own forward over [n, tokens, dim]. With it, `x` is [all tokens, dim]:
    the tokens of every crop of every size one after another, so that each linear layer and norm is one
    call; attention is one dense call a size, whose patches `rotations` turns. `run` is `run_packed` or a
    compiled version of it: what hooks do around a block (gathering its shards) stays outside.
    """

    run: Callable[..., Tensor] = staticmethod(run_packed)

    def forward(
        self,
        x: Tensor,
        layout: Layout | None = None,
        attention_drop: BranchDrop = KEEP_BRANCH,
        mlp_drop: BranchDrop = KEEP_BRANCH,
        wanted: Layout | None = None,
        rotations: Rotations = (),
        **options: Any,
    ) -> Tensor:
        """Tokens of the same layout, or of `wanted`; `options` are timm's."""
        if layout is None:
            plain: Tensor = super().forward(x, **options)  # type: ignore[misc]  # of the block it stands before
            return plain
        return self.run(self, x, layout, attention_drop, mlp_drop, wanted, rotations)


class PackedBlock(Packed, Block):  # type: ignore[misc]  # timm has no types
    """A block of a VisionTransformer."""

    def scaled(self, branch: int, x: Tensor) -> Tensor:
        """LayerScale of residual branch 1 or 2."""
        scaled: Tensor = (self.ls1 if branch == 1 else self.ls2)(x)
        return scaled


class PackedRotaryBlock(Packed, EvaBlock):  # type: ignore[misc]  # timm has no types
    """A block of timm's Eva, of which DINOv3's backbones are made."""

    def scaled(self, branch: int, x: Tensor) -> Tensor:
        """LayerScale of residual branch 1 or 2."""
        gamma = self.gamma_1 if branch == 1 else self.gamma_2
        return x if gamma is None else gamma * x


class CropGroup(NamedTuple):
    """Crops of one size. `images`: [n, 3, H, W]; `masks`: bool [n, patches], row-major, True where the
    mask token stands in the patch's place; `wanted`: only so many tokens of each are asked for, the class
    token first (None: all), so that the last MLP need not run on the others."""

    images: Tensor
    masks: Tensor | None = None
    drop: DropPath = KEEP_ALL
    wanted: int | None = None


class Backbone(OfVit):
    """`vit`: the timm model, exported as it is; `mask_token`: ours, used in training only.

    Position embeddings are resampled to the crop's grid (bicubic, antialiased, no offset): the same as
    timm's `dynamic_img_size` and as DINOv2 with antialiasing and offset 0.
    """

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit
        # Zero, as in DINOv2: a masked patch begins as its position alone.
        self.mask_token = nn.Parameter(torch.zeros(1, self.num_features))
        self._rotations: dict[tuple[int, int, torch.device], Tensor] = {}
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
        rotations = self._rotations_of(groups)
        x = torch.cat([tokens.flatten(0, 1) for tokens in embedded])
        dropped = [crops.drop for crops in groups]
        drops = pack_drops(dropped, layout, 2 * self.depth)
        # All blocks share one compiled function, and so does the last where every token is wanted.
        ends: Layout | None = None
        if wanted != layout:
            drops[-1] = pack_drops(dropped, wanted, 2 * self.depth)[-1]
            ends = wanted
        *inner, last = self.vit.blocks
        for i, block in enumerate(inner):
            x = self._block(block, x, layout, drops[2 * i], drops[2 * i + 1], None, rotations)
        x = self._block(last, x, layout, drops[-2], drops[-1], ends, rotations)
        parts = self.vit.norm(x).split([num * tokens for num, tokens in wanted])
        return [part.unflatten(0, size) for part, size in zip(parts, wanted, strict=True)]

    def _embed(self, crops: CropGroup) -> Tensor:
        x = self.vit.patch_embed(crops.images)
        if crops.masks is not None:
            grid = crops.masks.view(*x.shape[:3], 1)
            x = torch.where(grid, self.mask_token.to(x.dtype).view(1, 1, 1, -1), x)
        # Where positions are rotary, timm gives their table beside the tokens.
        placed = (
            self.vit._pos_embed(x)[0] if is_rotary(self.vit) else self.vit.patch_drop(self.vit._pos_embed(x))
        )
        tokens: Tensor = self.vit.norm_pre(placed)
        return tokens

    def _rotations_of(self, groups: Sequence[CropGroup]) -> Rotations:
        """Sines and cosines of each size's patches, made once a size: timm makes them on the host."""
        if not is_rotary(self.vit):
            return ()
        found = []
        for images in (crops.images for crops in groups):
            height, width = (side // self.patch_size for side in images.shape[2:])
            place = (height, width, images.device)
            if place not in self._rotations:
                self._rotations[place] = self.vit.rope.get_embed(shape=(height, width)).to(images.device)
            found.append(self._rotations[place])
        return tuple(found)

    def _block(self, block: nn.Module, x: Tensor, *args: Any) -> Any:
        if self.checkpoint_activations and torch.is_grad_enabled():
            # Nothing in a block is drawn at random: what is dropped comes from outside.
            return checkpoint(block, x, *args, use_reentrant=False, preserve_rng_state=False)
        return block(x, *args)


def build_backbone(config: ModelConfig, global_px: int, *, meta: bool = False) -> Backbone:
    """The backbone of `config` for global crops of `global_px`, as torch's global generator draws it.

    Raises `UserError` for an unknown architecture (with the nearest names) or arguments it rejects.
    """
    vit = create_vit(config.arch, resolved_arch_args(config, global_px), meta=meta)
    for block in vit.blocks:
        block.__class__ = PackedRotaryBlock if is_rotary(vit) else PackedBlock
    with torch.device("meta" if meta else "cpu"):
        return Backbone(vit)
