"""timm's transformer block over crops of several sizes at once, and without some of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eosin.models.arch import import_timm
from eosin.models.drop_path import KEEP_BRANCH, BranchDrop, Layout

import_timm()  # first, since timm may need torchvision's operators defined

from timm.models.vision_transformer import Block  # noqa: E402


def run_packed(
    block: Any,
    x: Tensor,
    layout: Layout,
    attention_drop: BranchDrop,
    mlp_drop: BranchDrop,
    wanted: Layout | None = None,
) -> Tensor:
    """One block over packed tokens [all tokens, dim]; a function of the block, so that all share its code.

    `wanted`: the layout of what comes out, the first tokens of each crop (None: all); `mlp_drop` fits it.
    """

    def attention(y: Tensor, kept: Layout) -> Tensor:
        return block.ls1(packed_attention(block.attn, block.norm1(y), kept))  # type: ignore[no-any-return]

    def mlp(y: Tensor, kept: Layout) -> Tensor:
        return block.ls2(block.mlp(block.norm2(y)))  # type: ignore[no-any-return]

    x = _residual(x, attention_drop, layout, attention)
    if wanted is not None:
        x = _first_tokens(x, layout, wanted)
    return _residual(x, mlp_drop, layout, mlp)


def packed_attention(attention: Any, x: Tensor, layout: Layout) -> Tensor:
    """timm's `Attention` over `x` [all tokens, dim]: tokens see those of their own crop only."""
    gate = attention.gate(x).sigmoid() if getattr(attention, "gate", None) is not None else None
    sizes = [num * tokens for num, tokens in layout]
    parts = [
        _attend(attention, qkv.view(num, tokens, 3, attention.num_heads, -1))
        for qkv, (num, tokens) in zip(attention.qkv(x).split(sizes), layout, strict=True)
    ]
    y = parts[0] if len(parts) == 1 else torch.cat(parts)
    y = attention.norm(y) if hasattr(attention, "norm") else y
    return attention.proj(y if gate is None else y * gate)  # type: ignore[no-any-return]


def _attend(attention: Any, qkv: Tensor) -> Tensor:
    """[n · tokens, heads · head_dim] of queries, keys and values [n, tokens, 3, heads, head_dim]."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    query, key = attention.q_norm(query), attention.k_norm(key)
    y = F.scaled_dot_product_attention(query, key, value)
    return y.transpose(1, 2).reshape(-1, qkv.shape[3] * qkv.shape[4])


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


class PackedBlock(Block):  # type: ignore[misc]
    """A timm block, parameters and names unchanged, that also takes a packed sequence.

    Without `layout` it is timm's own forward over [n, tokens, dim]. With it, `x` is [all tokens, dim]:
    the tokens of every crop of every size one after another, so that each linear layer and norm is one
    call; attention is one dense call a size. `run` is `run_packed` or a compiled version of it: what
    hooks do around a block (gathering its shards) stays outside.
    """

    run: Callable[..., Tensor] = staticmethod(run_packed)

    def forward(
        self,
        x: Tensor,
        layout: Layout | None = None,
        attention_drop: BranchDrop = KEEP_BRANCH,
        mlp_drop: BranchDrop = KEEP_BRANCH,
        wanted: Layout | None = None,
    ) -> Tensor:
        """Tokens of the same layout, or of `wanted`."""
        if layout is None:
            return super().forward(x)  # type: ignore[no-any-return]
        return self.run(self, x, layout, attention_drop, mlp_drop, wanted)
