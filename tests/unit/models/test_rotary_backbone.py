"""Backbones of DINOv3 (timm's Eva): the tokens of timm's own forward, and warm starts of both layouts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from eosin.config.model import ModelConfig
from eosin.errors import UserError
from eosin.models.arch import create_vit
from eosin.models.backbone import Backbone, CropGroup, build_backbone
from eosin.models.init import initialize
from eosin.training.engine.optimizer import multipliers
from tests.support.training_run import tiny_config

SMALL = {"patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}
ARCHES = [
    "vit_small_patch16_dinov3",
    "vit_small_plus_patch16_dinov3_qkvb",
    "vit_7b_patch16_dinov3",
    "eva02_tiny_patch14_224",
]


def small(arch: str, **arch_args: object) -> ModelConfig:
    return ModelConfig(arch=arch, arch_args={**SMALL, **arch_args}, layer_scale=0.3)


def drawn(arch: str, px: int = 16) -> Backbone:
    """With biases and registers that are not near 0."""
    torch.manual_seed(3)
    backbone = build_backbone(small(arch), px)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone.eval()


@pytest.mark.parametrize("arch", ARCHES)
def test_tokens_are_those_of_timms_own_forward_at_every_size(arch: str) -> None:
    backbone = drawn(arch)
    crops = [torch.rand(2, 3, 16, 16), torch.rand(3, 3, 8, 8)]
    with torch.no_grad():
        packed = backbone([CropGroup(crops[0]), CropGroup(crops[1], wanted=1)])
        plain = [backbone.vit.forward_features(images) for images in crops]
    torch.testing.assert_close(packed[0], plain[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed[1], plain[1][:, :1], rtol=1e-5, atol=1e-5)
    assert packed[0].shape[1] == backbone.num_prefix_tokens + 16


def test_a_hidden_patch_is_told_by_its_place_alone() -> None:
    backbone = drawn(ARCHES[0])
    masks = torch.zeros(2, 16, dtype=torch.bool)
    masks[:, 5] = True
    one, other = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    other[..., :4, :4], other[..., 4:, :] = one[..., :4, :4], one[..., 4:, :]
    other[..., :4, 8:], other[..., :4, 4:8] = one[..., :4, 8:], one[..., :4, 4:8]
    other[..., 4:8, 4:8] = 0.0  # patch 5, which the mask hides
    with torch.no_grad():
        tokens = backbone(torch.cat([one, other]), masks)
    torch.testing.assert_close(tokens[0], tokens[1])


def test_weights_of_timm_and_of_dinov3s_own_layout_are_taken(tmp_path: Path) -> None:
    given = drawn("vit_small_plus_patch16_dinov3_qkvb")
    state = {name: value.clone() for name, value in given.vit.state_dict().items()}
    save_file(state, tmp_path / "timm.safetensors")
    save_file(_as_dinov3(state), tmp_path / "dinov3.safetensors")
    for name in ("timm", "dinov3"):
        backbone = build_backbone(small("vit_small_plus_patch16_dinov3_qkvb"), 16)
        report = initialize(backbone, f"{tmp_path}/{name}.safetensors")
        assert not report.missing
        assert all(torch.equal(value, state[key]) for key, value in backbone.vit.state_dict().items())


def _as_dinov3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As facebookresearch/dinov3 names them: registers are storage tokens, biases of keys are there."""
    names = {"reg_token": "storage_tokens", ".gamma_1": ".ls1.gamma", ".gamma_2": ".ls2.gamma",
             "mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2", "mlp.fc2": "mlp.w3"}  # fmt: skip
    found = {"rope_embed.periods": torch.ones(4), "mask_token": torch.zeros(1, 32)}
    for key, value in state.items():
        if key.endswith("q_bias"):
            other = state[key.replace("q_bias", "v_bias")]
            found[key.replace("q_bias", "qkv.bias")] = torch.cat([value, torch.zeros_like(value), other])
        elif not key.endswith("v_bias"):
            for ours, theirs in names.items():
                key = key.replace(ours, theirs)
            found[key] = value.clone()
    return found


def test_what_scales_and_shifts_is_not_decayed() -> None:
    from eosin.models.network import build_network

    config = tiny_config(model={"arch": "vit_small_plus_patch16_dinov3_qkvb", "arch_args": SMALL})
    factors = multipliers(build_network(config), config.train.optimizer)
    undecayed = {name.rpartition(".")[2] for name, factor in factors.items() if factor.weight_decay == 0}
    assert {"gamma_1", "gamma_2", "q_bias", "v_bias", "bias"} <= undecayed
    assert factors["backbone.vit.reg_token"].weight_decay == 1


@pytest.mark.parametrize(
    ("arch", "args", "message"),
    [
        ("eva02_base_patch14_224", {}, "queries, keys and values apart"),
        ("vit_base_patch16_sapiens2", {}, "drawn at random|attention of AttentionRope"),
        ("vit_small_patch16_dinov3", {"patch_drop_rate": 0.5}, "patch dropout"),
        (
            "vit_small_patch16_dinov3",
            {"rope_type": "mixed", "rope_rotate_half": False},
            "other rotary positions",
        ),
        ("vit_small_patch16_dinov3", {"rope_rescale_coords": 2.0}, "drawn at random"),
    ],
)
def test_what_cannot_be_packed_is_refused(arch: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_vit(
            arch, {"img_size": 224, "dynamic_img_size": True, "global_pool": "token", **args}, meta=True
        )
