"""The FLOP count against figures published for known networks, and against what torch itself counts."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from eosin.config import RunConfig
from eosin.models.flops import crop_flops, head_flops
from eosin.models.network import build_network
from eosin.training.check import check_training, flops_per_image
from tests.support.training_run import tiny_config

SHARED = {"dino_head": {"num_prototypes": 65536, "bottleneck_dim": 256}}
SEPARATE = {
    "dino_head": {"num_prototypes": 131072, "bottleneck_dim": 384},
    "ibot_head": {"num_prototypes": 131072, "bottleneck_dim": 256},
}


@pytest.mark.parametrize(
    ("arch", "heads", "local_px", "drop_path", "gflop", "with_drop_path"),
    [
        ("vit_small_patch16_224", SHARED, 96, 0.3, 124, 96),
        ("vit_base_patch16_224", SHARED, 96, 0.3, 446, 337),
        ("vit_large_patch16_224", SHARED, 96, 0.3, 1538, 1155),
        ("vit_large_patch14_dinov2", SEPARATE, 98, 0.4, 2067, 1386),
        ("vit_giant_patch14_dinov2", SEPARATE, 98, 0.4, 7565, 5034),
    ],
)
def test_known_networks(
    arch: str, heads: dict[str, Any], local_px: int, drop_path: float, gflop: float, with_drop_path: float
) -> None:
    """2 × 224 px, 8 local crops, iBOT on; student three times, teacher once."""
    model = {"arch": arch, "drop_path": drop_path, **heads}
    figures = check_training(RunConfig.model_validate({"augment": {"local_px": local_px}, "model": model}))
    assert figures["gflop_per_image"] == pytest.approx(gflop, rel=0.02)
    assert figures["gflop_per_image_with_drop_path"] == pytest.approx(with_drop_path, rel=0.02)


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "vit_giant_patch14_reg4_dinov2"])
def test_a_forward_pass_has_as_many_as_torch_counts(arch: str) -> None:
    network = build_network(tiny_config(model={"arch": arch, "drop_path": 0.0}))
    # The fused attention of a CPU is one operator that torch does not count.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        network.backbone(torch.zeros(3, 3, 16, 16))
    crop = crop_flops(network.backbone, 16)
    assert 3 * (crop.embedding + crop.blocks) == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_a_head_has_as_many_as_torch_counts() -> None:
    head = build_network(tiny_config()).dino_head
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        torch.nn.functional.linear(head(torch.zeros(5, 32)), head.last_layer.weight())
    assert 5 * head_flops(head) == counter.get_total_flops()


def test_dino_without_masks_costs_no_patch_head() -> None:
    with_ibot, without = tiny_config(), tiny_config(method="dino")
    more = flops_per_image(with_ibot, build_network(with_ibot))
    assert more > flops_per_image(without, build_network(without)) > 0.5 * more
