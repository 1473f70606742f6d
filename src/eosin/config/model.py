"""The backbone and the projection heads."""

import math
from typing import Any

from pydantic import Field, field_validator

from eosin.config.base import Section


class HeadConfig(Section):
    """A projection head: an MLP to a bottleneck, and prototypes on it."""

    num_prototypes: int = Field(default=65536, gt=1, le=2**30)
    """Prototypes that features are compared with: the length of the logits."""
    hidden_dim: int = Field(default=2048, gt=0, le=65536)
    """Width of the hidden layers of the MLP."""
    bottleneck_dim: int = Field(default=256, gt=0, le=65536)
    """Width of the normalised features that meet the prototypes."""
    num_layers: int = Field(default=3, ge=1, le=64)
    """Linear layers of the MLP, the one to the bottleneck included."""
    freeze_last_layer_norm: bool = False
    """Keep the prototypes on the unit sphere (DINO); DINOv2 trains and decays their norms."""


class ModelConfig(Section):
    """The backbone, what it begins with, and its heads."""

    arch: str = "vit_small_patch16_224"
    """Any timm VisionTransformer, or a DINOv3 backbone of timm (vit_*_dinov3)."""
    arch_args: dict[str, Any] = {}
    """Keyword arguments for timm.create_model: embed_dim, depth, num_heads, patch_size, reg_tokens…
    Classes by their name in timm.layers: mlp_layer: SwiGLUPacked."""
    init: str = "random"
    """random; timm:NAME; hf-hub:OWNER/NAME; the URI of a safetensors or PyTorch file; or
    run:URI, the student, teacher and heads of another run's newest checkpoint, to go on at another size."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Share of the crops that each residual branch leaves out (stochastic depth), alike in every block; above
    0.1 they are not computed either."""
    drop_path_rises: bool = False
    """Let the share rise from 0 in the first block to `drop_path` in the last, as DINO does;
    nothing is left uncomputed then."""
    layer_scale: float | None = Field(default=1e-5, ge=0, le=10)
    """What LayerScale's factors begin at; None: none."""
    dino_head: HeadConfig = HeadConfig()
    """The head of the class token."""
    ibot_head: HeadConfig | None = None
    """A head of its own for patch tokens (iBOT); None: it shares the DINO head."""

    @field_validator("arch_args")
    @classmethod
    def _numbers_are_of_a_network(cls, arch_args: dict[str, Any]) -> dict[str, Any]:
        for name, value in arch_args.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number")
            most = 1024 if name == "depth" else 65536
            if isinstance(value, int | float) and abs(value) > most:
                raise ValueError(
                    f"{name} {value:g} is no size of a network that can be built; at most {most}"
                )
        return arch_args
