"""The network: a backbone and its projection heads; student and teacher are two copies of it."""

from __future__ import annotations

import copy

import torch
from torch import nn

from eosin.config import RunConfig
from eosin.config.train import TrainConfig
from eosin.models.backbone import Backbone, build_backbone
from eosin.models.device import require_compiler
from eosin.models.heads import ProjectionHead
from eosin.models.init import InitReport, initialize


class Network(nn.Module):
    """`ibot_head` is None where iBOT shares the DINO head or is not used."""

    def __init__(
        self, backbone: Backbone, dino_head: ProjectionHead, ibot_head: ProjectionHead | None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dino_head = dino_head
        self.ibot_head = ibot_head

    @property
    def patch_head(self) -> ProjectionHead:
        """The head that masked patches go through."""
        return self.dino_head if self.ibot_head is None else self.ibot_head

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
            dino_head = ProjectionHead(backbone.num_features, config.model.dino_head)
            ibot_head = None
            if config.train.uses_ibot and config.model.ibot_head is not None:
                ibot_head = ProjectionHead(backbone.num_features, config.model.ibot_head)
    return Network(backbone, dino_head, ibot_head)


def starting_network(config: RunConfig) -> tuple[Network, InitReport]:
    """The network training starts from: `build_network`, then `model.init`."""
    network = build_network(config)
    return network, initialize(network.backbone, config.model.init)


def speed_up(network: Network, config: TrainConfig) -> None:
    """Compile blocks and prototypes, recompute activations, as the configuration says; the function stays.

    Raises `UserError` where compilation is asked for and there is no compiler.
    """
    network.backbone.checkpoint_activations = config.activation_checkpointing
    if config.compile:
        require_compiler()
        network.backbone.compile_blocks()
        for head in (network.dino_head, network.ibot_head):
            if head is not None:
                head.last_layer.compile_weight()


def teacher_of(student: Network) -> Network:
    """A frozen copy in evaluation mode."""
    teacher = copy.deepcopy(student).requires_grad_(False)
    return teacher.eval()
