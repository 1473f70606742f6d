"""Patch tokens of networks with and without prefix tokens, and of convolutional ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from eosin.errors import PermanentError
from eosin.evaluation.embeddings.forward import Forward
from eosin.models.arch import import_timm
from eosin.records import TeacherCard

timm = import_timm()
PIXELS = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3)).astype(np.uint8)
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 0}


def _forward(module: nn.Module) -> Forward:
    card = TeacherCard(
        name="m", step=None, arch="m", arch_args={}, img_px=32, num_features=32, mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5), mpp=(), weights_sha256="",
    )  # fmt: skip
    return Forward(module, card)


@pytest.mark.parametrize("num_registers", [0, 4])
def test_prefix_tokens_are_left_out_and_patches_keep_their_place(num_registers: int) -> None:
    module = timm.create_model("vit_tiny_patch16_224", reg_tokens=num_registers, **VIT)
    forward = _forward(module)
    tokens = forward.tokens(PIXELS)
    assert (tokens.shape, tokens.dtype) == ((2, 32, 4, 4), np.float16)
    with torch.inference_mode():
        images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255
        every = module.cpu().forward_features((images - 0.5) / 0.5).numpy()
    first = 1 + num_registers
    assert np.allclose(tokens[1, :, 2, 3], every[1, first + 2 * 4 + 3], atol=1e-2)


def test_a_convolutional_network_gives_its_own_map() -> None:
    tokens = _forward(timm.create_model("resnet18", num_classes=0)).tokens(PIXELS)
    assert tokens.shape == (2, 512, 1, 1)


def test_channels_last_maps_are_turned() -> None:
    module = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=4, num_classes=0)
    assert _forward(module).tokens(PIXELS).shape == (2, 768, 1, 1)


def test_a_network_without_a_map_is_refused_by_name() -> None:
    with pytest.raises(PermanentError, match="model m gives no map"):
        _forward(nn.Flatten()).tokens(PIXELS)
