"""Masked tokens, crop sizes and drop path over timm's own blocks."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing

from eosin.errors import UserError
from eosin.models.arch import define_missing_ops
from eosin.models.backbone import Backbone, CropGroup, build_backbone
from eosin.models.drop_path import draw_drop_path
from eosin.models.network import PrototypeLayer
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


def plain_pass(backbone: Backbone, crops: CropGroup) -> torch.Tensor:
    """One size of crops, branch by branch over timm's own modules."""

    def residual(index: int, x: torch.Tensor, branch: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        if crops.drop.rows is not None:
            rows = crops.drop.rows[index]
            return x.index_add(0, rows, branch(x[rows]), alpha=len(x) / len(rows))
        factors = torch.ones(len(x)) if crops.drop.factors is None else crops.drop.factors[index]
        return x + branch(x) * factors.view(-1, 1, 1)

    x = backbone.vit.patch_embed(crops.images)
    if crops.masks is not None:
        x = torch.where(crops.masks.view(*x.shape[:3], 1), backbone.mask_token, x)
    x = backbone.vit._pos_embed(x)
    for i, block in enumerate(backbone.vit.blocks):
        x = residual(2 * i, x, lambda y, b=block: b.ls1(b.attn(b.norm1(y))))  # type: ignore[misc]
        x = residual(2 * i + 1, x, lambda y, b=block: b.ls2(b.mlp(b.norm2(y))))  # type: ignore[misc]
    return backbone.vit.norm(x)  # type: ignore[no-any-return]


def two_sizes(rate: float) -> list[CropGroup]:
    """Four masked crops of 16 px and nine of 8 px, each with its drop path."""
    rng = np.random.default_rng(7)
    masks = torch.from_numpy(rng.random((4, 16)) < 0.4)
    drops = [draw_drop_path(rate, 3, num, rng, CPU) for num in (4, 9)]
    return [CropGroup(images(4), masks, drops[0]), CropGroup(images(9, 8), None, drops[1])]


def with_gradients(backbone: Backbone, tokens: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tokens, and the gradients of a loss that reads every one of them."""
    backbone.zero_grad()
    weights = [torch.linspace(-1, 1, part.numel()).view_as(part) for part in tokens]
    loss = sum(((part * weight).sum() for part, weight in zip(tokens, weights, strict=True)), torch.zeros(()))
    loss.backward()  # type: ignore[no-untyped-call]
    grads = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    return grads | {f"tokens {i}": part.detach() for i, part in enumerate(tokens)}


def assert_alike(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        # Key biases have no gradient but rounding noise, hence the floor.
        assert float((ours[name] - value).norm() / value.norm().clamp(min=1.0)) < 1e-5, name


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4])
def test_packed_sizes_give_the_tokens_and_gradients_of_a_pass_each(backbone: Backbone, rate: float) -> None:
    groups = two_sizes(rate)
    plain = with_gradients(backbone, [plain_pass(backbone, crops) for crops in groups])
    assert_alike(with_gradients(backbone, backbone(groups)), plain)
    assert_alike(
        with_gradients(backbone, [backbone(crops.images, crops.masks, crops.drop) for crops in groups]), plain
    )


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("wanted", [(None, 1), (3, 2), (1, None)])
def test_tokens_that_nobody_wants_change_nothing_for_the_others(
    backbone: Backbone, rate: float, wanted: tuple[int | None, int | None]
) -> None:
    """The last MLP runs on fewer tokens; those that come out have the values and gradients they had."""
    groups = two_sizes(rate)
    fewer = [crops._replace(wanted=num) for crops, num in zip(groups, wanted, strict=True)]
    rows: list[int] = []
    backbone.vit.blocks[-1].mlp.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    plain = [tokens[:, :num] for tokens, num in zip(backbone(groups), wanted, strict=True)]
    expected = with_gradients(backbone, plain)
    assert_alike(with_gradients(backbone, backbone(fewer)), expected)
    assert rows[1] < rows[0]


def test_recomputed_activations_give_the_same_gradients(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = two_sizes(0.4)
    plain = with_gradients(backbone, backbone(groups))
    monkeypatch.setattr(backbone, "checkpoint_activations", True)
    assert_alike(with_gradients(backbone, backbone(groups)), plain)


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_blocks_compile_whole_and_once(backbone: Backbone, rate: float) -> None:
    """Traced, not lowered: the compiler proper is for tests/gpu and the long test of a compiled step."""
    groups = two_sizes(rate)
    plain = with_gradients(backbone, backbone(groups))
    compiled = copy.deepcopy(backbone)
    torch._dynamo.reset()
    counters = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled.compile_blocks(backend=counters)
    assert_alike(with_gradients(compiled, compiled(groups)), plain)
    assert counters.frame_count == 1, "three blocks share one graph"
    assert copy.deepcopy(compiled).state_dict().keys() == backbone.state_dict().keys()
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("arch_args", "message"),
    [
        ({"drop_path_rate": 0.1}, "model.drop_path"),
        ({"proj_drop_rate": 0.1}, "dropout"),
        ({"attn_layer": "diff"}, "cannot be packed"),
    ],
)
def test_what_would_draw_by_itself_or_cannot_be_packed_is_refused(
    arch_args: dict[str, Any], message: str
) -> None:
    tiny = tiny_config().model
    with pytest.raises(UserError, match=message):
        build_backbone(tiny.model_copy(update={"arch_args": {**tiny.arch_args, **arch_args}}), 16)


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


def test_a_rising_drop_path_keeps_the_first_block_and_drops_most_in_the_last() -> None:
    """As DINO's vision transformer: rates evenly from 0 to the last block's, each sample by itself."""
    drop = draw_drop_path(0.4, 5, 20_000, np.random.default_rng(3), torch.device("cpu"), rises=True)
    assert drop.rows is None and drop.factors is not None
    dropped = (drop.factors == 0).float().mean(1)
    expected = torch.linspace(0, 0.4, 5).repeat_interleave(2)
    assert torch.allclose(dropped, expected, atol=0.015) and not dropped[:2].any()
    assert torch.allclose(drop.factors.mean(1), torch.ones(10), atol=0.03)


@pytest.mark.parametrize("width", [64, 256, 384])
def test_prototypes_begin_as_those_of_the_references(width: int) -> None:
    """DINO and DINOv2 put `weight_norm` on a linear layer as torch draws it, and fill its gains with 1."""
    torch.manual_seed(3)
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(width, 512, bias=False))
    torch.manual_seed(3)
    ours = PrototypeLayer(width, 512, freeze_norm=False)
    drawn = theirs.parametrizations.weight.original1
    assert torch.equal(ours.weight_v, drawn) and (ours.weight_g == 1).all()
    assert float(ours.weight_v.detach().norm(dim=1).mean()) == pytest.approx(3**-0.5, abs=0.01)
