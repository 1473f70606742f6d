"""Patch tokens of networks with and without prefix tokens, and of convolutional ones."""

import numpy as np
import pytest
import torch
from torch import nn

from eosin.errors import PermanentError, UserError
from eosin.evaluation.embeddings.forward import Forward
from eosin.models.arch import import_timm
from eosin.records import TeacherCard

timm = import_timm()
PIXELS = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3)).astype(np.uint8)
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 0}


def _forward(module: nn.Module, read_out: str = "last") -> Forward:
    card = TeacherCard(
        name="m", step=None, arch="m", arch_args={}, img_px=32, num_features=32, mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5), mpp=(), weights_sha256="",
    )  # fmt: skip
    return Forward(module, card, read_out)


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


@pytest.mark.parametrize("num_registers", [0, 4])
@pytest.mark.parametrize(("num_blocks", "with_patches"), [(1, False), (3, False), (2, True)])
def test_class_tokens_of_the_last_blocks_are_those_of_dinov2s_linear_evaluation(
    num_registers: int, num_blocks: int, with_patches: bool
) -> None:
    module = timm.create_model("vit_tiny_patch16_224", reg_tokens=num_registers, **{**VIT, "depth": 4}).eval()
    after: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda *args: after.append(args[2])) for block in module.blocks]
    with torch.inference_mode():
        module((torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5)
        normed = [module.norm(x) for x in after[-num_blocks:]]
    for hook in hooks:
        hook.remove()
    wanted = [x[:, 0] for x in normed] + [normed[-1][:, 1 + num_registers :].mean(1)] * with_patches
    found = _forward(module, f"cls_last_{num_blocks}" + "_mean_patch" * with_patches)(PIXELS)
    np.testing.assert_allclose(found, torch.cat(wanted, dim=1).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("module", "why"),
    [(timm.create_model("vit_tiny_patch16_224", **VIT), "1 blocks"),
     (timm.create_model("resnet18", num_classes=0), "no class tokens")],
)  # fmt: skip
def test_class_tokens_that_a_network_has_not_are_refused(module: nn.Module, why: str) -> None:
    with pytest.raises(UserError, match=f"model m has {why}.*cls_last_2"):
        _forward(module, "cls_last_2")
