"""Which learning rate and weight decay each parameter gets."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from torch import nn

from eosin.config.train import OptimizerConfig
from eosin.models.network import Network

_BLOCK = re.compile(r"vit\.blocks\.(\d+)\.")
_EMBEDDINGS = ("vit.pos_embed", "vit.patch_embed.", "vit.cls_token", "vit.reg_token", "mask_token")


@dataclass(frozen=True)
class Multipliers:
    """Factors on the scheduled learning rate and weight decay; `last_layer` has a rate of its own."""

    lr: float
    weight_decay: float
    last_layer: bool


def multipliers(network: Network, config: OptimizerConfig) -> dict[str, Multipliers]:
    """Factors of every trained parameter of `network`, by name.

    Backbone layer i of n blocks (0: embeddings, n + 1: final norm) has layer_decay^(n + 1 − i). Biases,
    norms and LayerScale are not decayed; position embeddings and tokens are.
    """
    return {
        name: Multipliers(
            lr=_lr_multiplier(name, network.backbone.depth, config),
            weight_decay=0.0 if _undecayed(name) else 1.0,
            last_layer="last_layer" in name,
        )
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


def param_groups(network: Network, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups for torch's AdamW, one for each distinct `Multipliers` (under the key `multipliers`)."""
    parameters: dict[str, nn.Parameter] = dict(network.named_parameters())
    groups: dict[Multipliers, list[nn.Parameter]] = defaultdict(list)
    for name, factors in multipliers(network, config).items():
        groups[factors].append(parameters[name])
    return [{"params": members, "multipliers": factors} for factors, members in groups.items()]


def _lr_multiplier(name: str, depth: int, config: OptimizerConfig) -> float:
    module, _, local = name.partition(".")
    if module != "backbone":
        return 1.0
    block = _BLOCK.match(local)
    layer = int(block[1]) + 1 if block else 0 if local.startswith(_EMBEDDINGS) else depth + 1
    patch_embed = config.patch_embed_lr_multiplier if "patch_embed" in local else 1.0
    return float(config.layer_decay ** (depth + 1 - layer) * patch_embed)


def _undecayed(name: str) -> bool:
    return name.endswith((".bias", ".gamma")) or ".norm" in name or "_norm." in name
