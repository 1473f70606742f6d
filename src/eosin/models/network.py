"""The network: a backbone and its projection heads; student and teacher are two copies of it.

A head is an MLP to a bottleneck on the unit sphere, then a weight-normed prototype layer.
"""

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eosin.config import RunConfig
from eosin.config.model import HeadConfig
from eosin.config.train import TrainConfig
from eosin.models.backbone import Backbone, build_backbone
from eosin.models.device import compiled, require_compiler
from eosin.models.frozen_teacher import teacher_shape


class JepaPredictor(nn.Module):
    """`depth` blocks of width `dim` over all patches of a crop, hidden ones among them.

    Hidden patches stand in the student as mask tokens at their places, so tokens bring their positions and
    the predictor has none of its own, as in nanopath; in I-JEPA hidden patches are left out and join here.
    """

    def __init__(self, in_dim: int, out_dim: int, dim: int, depth: int) -> None:
        # Here, after the backbone: timm may need torchvision's operators defined.
        from timm.models.vision_transformer import Block

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


def weight_normed(gain: Tensor, direction: Tensor) -> Tensor:
    """Rows `gain` [K, 1] · v / ‖v‖ of `direction` [K, d]."""
    norm: Tensor = direction.norm(dim=1, keepdim=True)
    return gain * (direction / norm)


class PrototypeLayer(nn.Module):
    """Linear without bias whose rows are `weight_g` · `weight_v` / ‖`weight_v`‖ (weight normalisation).

    `normed` is `weight_normed` or a compiled version of it.
    """

    normed: Callable[[Tensor, Tensor], Tensor] = staticmethod(weight_normed)

    def __init__(self, bottleneck_dim: int, num_prototypes: int, *, freeze_norm: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(num_prototypes, 1), requires_grad=not freeze_norm)
        self.weight_v = nn.Parameter(torch.empty(num_prototypes, bottleneck_dim))
        # As torch's linear layer, which both references leave here: rows of norm 1 / √3, whatever the width.
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))

    def weight(self) -> Tensor:
        """Prototypes [num_prototypes, bottleneck_dim]."""
        return self.normed(self.weight_g, self.weight_v)

    def compile_weight(self, **options: Any) -> None:
        """Compile `weight`, in place."""
        self.normed = compiled(weight_normed, **options)


def head_mlp(
    in_dim: int, hidden_dim: int, out_dim: int, num_layers: int, *, last_bias: bool = True
) -> nn.Sequential:
    """`num_layers` linear layers with GELU between them, drawn as the references draw their heads."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise([in_dim, *[hidden_dim] * (num_layers - 1), out_dim]):
        layers += [nn.Linear(fan_in, fan_out), nn.GELU()]
    for layer in layers[::2]:
        assert isinstance(layer, nn.Linear)
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    if not last_bias:
        layers[-2].register_parameter("bias", None)
    return nn.Sequential(*layers[:-1])


class ProjectionHead(nn.Module):
    """dim → hidden → … → bottleneck (GELU between), L2-normalised; logits against the prototypes.

    `forward` stops at the bottleneck: logits are [rows, num_prototypes] in float32 and are made in
    chunks by whoever needs them (`eosin.training.losses`).
    """

    def __init__(self, in_dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.mlp = head_mlp(in_dim, config.hidden_dim, config.bottleneck_dim, config.num_layers)
        self.last_layer = PrototypeLayer(
            config.bottleneck_dim, config.num_prototypes, freeze_norm=config.freeze_last_layer_norm
        )

    def forward(self, x: Tensor) -> Tensor:
        """Unit vectors [rows, bottleneck_dim] of `x` [rows, in_dim]."""
        x = self.mlp(x)
        return F.normalize(x, dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12)


HEADS = ("dino_head.", "ibot_head.")
"""What the names of a network's head parameters begin with."""


class Network(nn.Module):
    """`ibot_head` is None where iBOT shares the DINO head or is not used; `adapter` takes the backbone's
    features to the width of a frozen teacher's, which the heads then have; `paka_head` and `predictor` are
    those of patch kernel alignment and of I-JEPA."""

    def __init__(
        self,
        backbone: Backbone,
        dino_head: ProjectionHead,
        ibot_head: ProjectionHead | None,
        *,
        adapter: nn.Linear | None = None,
        paka_head: nn.Sequential | None = None,
        predictor: JepaPredictor | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dino_head = dino_head
        self.ibot_head = ibot_head
        self.adapter = adapter
        self.paka_head = paka_head
        self.predictor = predictor

    def for_heads(self, tokens: Tensor) -> Tensor:
        """What the heads take of the backbone's tokens [rows, dim]."""
        return tokens if self.adapter is None else self.adapter(tokens)

    @property
    def patch_head(self) -> ProjectionHead:
        """The head that masked patches go through."""
        return self.dino_head if self.ibot_head is None else self.ibot_head

    @property
    def heads(self) -> list[ProjectionHead]:
        """Those with prototypes, one or two."""
        return [head for head in (self.dino_head, self.ibot_head) if head is not None]

    def submodules(self) -> dict[str, nn.Module]:
        """What is clipped on its own: the backbone and each head."""
        return dict(self.named_children())


def build_network(config: RunConfig, *, meta: bool = False) -> Network:
    """The untrained network, a pure function of `config.seed` and the model section; no warm start.

    The backbone is drawn first, so that it is the same whatever the heads are.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        backbone = build_backbone(config.model, config.augment.global_px, meta=meta)
        with torch.device("meta" if meta else "cpu"):
            width, adapter = backbone.num_features, None
            if config.train.distill is not None:
                width = int(teacher_shape(config.train.distill.teacher).vit.num_features)
                adapter = nn.Linear(backbone.num_features, width)
            dino_head = ProjectionHead(width, config.model.dino_head)
            ibot_head = None
            if config.train.uses_ibot and config.model.ibot_head is not None:
                ibot_head = ProjectionHead(width, config.model.ibot_head)
            extra = _dense_parts(config, backbone, width)
    return Network(backbone, dino_head, ibot_head, adapter=adapter, **extra)


def _dense_parts(config: RunConfig, backbone: Backbone, width: int) -> dict[str, Any]:
    """What losses on dense features bring: drawn last, so that the rest is the same without."""
    paka, jepa, dim = config.train.paka, config.train.jepa, backbone.num_features
    parts: dict[str, Any] = {}
    if paka.weight > 0:
        # Kernels are centred: a last bias would have no gradient but rounding, and Adam would follow that.
        parts["paka_head"] = head_mlp(width, paka.hidden_dim, paka.out_dim, 3, last_bias=False)
    if config.train.uses_jepa:
        parts["predictor"] = JepaPredictor(dim, width, jepa.predictor_dim or dim, jepa.predictor_depth)
    return parts


def speed_up(network: Network, config: TrainConfig) -> None:
    """Compile blocks and prototypes, recompute activations, as the configuration says; the function stays.

    Raises `UserError` where compilation is asked for and there is no compiler.
    """
    network.backbone.checkpoint_activations = config.activation_checkpointing
    if config.compile:
        require_compiler()
        network.backbone.compile_blocks()
        for head in network.heads:
            head.last_layer.compile_weight()


def teacher_of(student: Network) -> Network:
    """A frozen copy in evaluation mode."""
    teacher = copy.deepcopy(student).requires_grad_(False)
    return teacher.eval()
