"""The backbone and the projection heads."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from eosin.config.base import Section


class HeadConfig(Section):
    num_prototypes: int = Field(default=65536, gt=1)
    hidden_dim: int = Field(default=2048, gt=0)
    bottleneck_dim: int = Field(default=256, gt=0)
    num_layers: int = Field(default=3, ge=1)
    freeze_last_layer_norm: bool = False
    """Keep the prototypes on the unit sphere (DINO); DINOv2 trains and decays their norms."""


class ModelConfig(Section):
    arch: str = "vit_small_patch16_224"
    """Any timm VisionTransformer."""
    arch_args: dict[str, Any] = {}
    """Keyword arguments for timm.create_model: embed_dim, depth, num_heads, patch_size, reg_tokens…"""
    init: str = "random"
    """random; timm:NAME; the URI of a safetensors file; or run:URI, the student, teacher and heads of
    another run's newest checkpoint, to go on at another crop size."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    layer_scale: float | None = Field(default=1e-5)
    dino_head: HeadConfig = HeadConfig()
    ibot_head: HeadConfig | None = None
    """None: iBOT shares the DINO head."""
