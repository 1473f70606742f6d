"""Masked tokens, crop sizes and drop path over timm's own blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eosin.models.backbone import Backbone, build_backbone
from eosin.models.drop_path import KEEP_ALL, DropPath, draw_drop_path
from eosin.models.torchvision_ops import define_missing_ops
from tests.support.training_run import tiny_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    made = build_backbone(tiny_config().model, 16)
    with torch.no_grad():
        made.mask_token.normal_(generator=torch.Generator().manual_seed(2))
    return made


def images(num: int, side_px: int = 16) -> torch.Tensor:
    return torch.randn(num, 3, side_px, side_px, generator=torch.Generator().manual_seed(num))


def test_without_masks_it_is_timms_own_forward(backbone: Backbone) -> None:
    for side_px in (8, 16, 32):
        assert torch.allclose(
            backbone(images(2, side_px)), backbone.vit.forward_features(images(2, side_px)), atol=1e-6
        )


def test_a_masked_patch_is_not_seen_and_the_others_are(backbone: Backbone) -> None:
    masks = torch.zeros(1, 16, dtype=torch.bool)
    masks[0, 5] = True  # row 1, column 1 of a 4 × 4 grid: pixels 4 … 7 both ways
    one, other = images(1), images(1)
    other[:, :, 4:8, 4:8] += 3
    assert torch.equal(backbone(one, masks), backbone(other, masks))
    other[:, :, 4:8, 8:12] += 3
    assert not torch.allclose(backbone(one, masks), backbone(other, masks))


def test_masking_everything_leaves_only_positions(backbone: Backbone) -> None:
    masks = torch.ones(2, 16, dtype=torch.bool)
    tokens = backbone(images(2), masks)
    assert torch.equal(tokens[0], tokens[1])
    assert not torch.allclose(tokens[0, 1], tokens[0, 2])


@pytest.mark.parametrize(("rate", "kept"), [(0.3, 7), (0.95, 1)])
def test_above_a_tenth_an_exact_number_of_samples_runs_a_branch(rate: float, kept: int) -> None:
    drop = draw_drop_path(rate, 3, 10, np.random.default_rng(0), CPU)
    assert drop.rows is not None and drop.rows.shape == (6, kept)
    assert all(len(set(row.tolist())) == kept for row in drop.rows)


def test_kept_samples_are_scaled_and_dropped_ones_pass_unchanged() -> None:
    x = torch.ones(4, 2, 3)
    subset = DropPath(rows=torch.tensor([[2, 0]])).residual(0, x, lambda y: y)
    assert subset[:, 0, 0].tolist() == [3.0, 1.0, 3.0, 1.0]
    single = DropPath(factors=torch.tensor([[0.0, 1.25, 0.0, 1.25]])).residual(0, x, lambda y: y)
    assert single[:, 0, 0].tolist() == [1.0, 2.25, 1.0, 2.25]
    assert torch.equal(KEEP_ALL.residual(0, x, lambda y: y), x + x)


def test_small_rates_keep_about_their_share() -> None:
    drop = draw_drop_path(0.1, 200, 50, np.random.default_rng(1), CPU)
    assert drop.factors is not None
    assert float((drop.factors > 0).float().mean()) == pytest.approx(0.9, abs=0.01)
    assert float(drop.factors.mean()) == pytest.approx(1.0, abs=0.01)


def test_drop_path_draws_repeat_with_the_seed() -> None:
    one, again = (draw_drop_path(0.3, 3, 10, np.random.default_rng([1, 2]), CPU) for _ in range(2))
    assert one.rows is not None and again.rows is not None and torch.equal(one.rows, again.rows)


def test_defining_missing_operators_twice_is_harmless() -> None:
    define_missing_ops()
    define_missing_ops.cache_clear()
    assert define_missing_ops() is False
    assert hasattr(torch.ops.torchvision, "nms")
