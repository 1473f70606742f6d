"""Gram anchoring, patch kernel alignment and I-JEPA: the references' values, and the same in any world."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from eosin.config.train import GramConfig
from eosin.errors import UserError
from eosin.models.frozen_teacher import resample_grid
from eosin.observability import RunLog
from eosin.patches.augment import MultiCrop
from eosin.training.check import check_training
from eosin.training.engine.dense_health import dense_health
from eosin.training.engine.microbatch import draw_masks, mask_counts
from eosin.training.loop import ReachedStep, Trainer
from eosin.training.losses.patch_tokens import gram_distance, jepa_sum, jepa_targets, kernel_misalignment
from eosin.training.world import World
from tests.support.golden import VALUES, tensors
from tests.support.ranks import Leg, norm_difference, train_legs
from tests.support.training_run import ArraySource, tiny_config

GOLDEN, DENSE = tensors("dense"), VALUES["dense"]
PAKA = {"weight": 0.5, "hidden_dim": 24, "out_dim": 8, "start_step": 2}
JEPA = {"weight": 1.0, "predictor_depth": 2, "predictor_dim": 24}
MIXED = [
    {"global_px": 8, "local_px": 4},
    {"global_px": 16, "local_px": 4},
    {"global_px": 16, "local_px": 8, "weight": 2},
]
METHODS: dict[str, dict[str, object]] = {
    "gram": {
        "gram": {
            "weight": 2.0,
            "start_step": 1,
            "warmup_steps": 4,
            "refresh_every_steps": 2,
            "px_multiplier": 2,
        }
    },
    "paka": {"paka": PAKA},
    "jepa": {"jepa": JEPA, "ibot": {"weight": 0.0}},
    # DINOv3's high-resolution adaptation.
    "mixed sizes": {
        "augment": {"mixed_px": MIXED},
        "gram": {"weight": 1.5, "max_refreshes": 0, "px_multiplier": 1.5},
    },
}


def value_and_gradient(loss: object, *others: Tensor) -> tuple[float, Tensor]:
    student = GOLDEN["student"].clone().requires_grad_()
    value = loss(student, *others) / len(student)  # type: ignore[operator]  # one of the losses
    value.backward()
    assert student.grad is not None
    return float(value.detach()), student.grad


@pytest.mark.parametrize(("name", "loss"), [("gram", gram_distance), ("paka", kernel_misalignment)])
def test_values_and_gradients_are_the_references(name: str, loss: object) -> None:
    value, gradient = value_and_gradient(loss, GOLDEN["teacher"])
    assert value == pytest.approx(DENSE[name], rel=1e-5)
    assert float(gradient.norm()) == pytest.approx(DENSE[f"{name}_grad_norm"], rel=1e-5)
    assert gradient[0, 0, :4].tolist() == pytest.approx(DENSE[f"{name}_grad_head"], rel=1e-4)


def test_gram_features_of_twice_the_side_are_resampled_as_the_reference_does() -> None:
    teacher = resample_grid(GOLDEN["teacher_high_resolution"], 3, antialias=False)
    value, gradient = value_and_gradient(gram_distance, teacher)
    assert value == pytest.approx(DENSE["gram_high_resolution"], rel=1e-5)
    assert float(gradient.norm()) == pytest.approx(DENSE["gram_high_resolution_grad_norm"], rel=1e-5)


def test_the_patch_loss_of_i_jepa_is_the_references() -> None:
    weights = torch.full((9,), 1 / 9)

    def loss(student: Tensor) -> Tensor:
        targets = jepa_targets(GOLDEN["teacher"]).unbind()
        return torch.stack(
            [jepa_sum(own, target, weights) for own, target in zip(student, targets, strict=True)]
        ).sum()

    value, gradient = value_and_gradient(loss)
    assert value == pytest.approx(DENSE["jepa"], rel=1e-5)
    assert float(gradient.norm()) == pytest.approx(DENSE["jepa_grad_norm"], rel=1e-5)


def test_blocks_of_i_jepa_hide_an_exact_number_in_few_rectangles() -> None:
    config = tiny_config(jepa=JEPA, ibot={"weight": 0.0}).train.masking
    masks = draw_masks(config, 8, 16, np.random.default_rng(3))
    assert sorted(masks.sum(1)) == sorted(mask_counts(config, 8, 256)) and min(masks.sum(1)) >= 0.3 * 256
    # A hidden patch's neighbours are mostly hidden too, as single patches' would not be.
    grid = masks.reshape(8, 16, 16)
    beside = (grid[:, :, 1:] & grid[:, :, :-1]).sum() / grid[:, :, :-1].sum()
    assert beside > 0.8


def test_the_gram_teacher_sees_what_the_crops_show_with_colours_as_they_are() -> None:
    config = tiny_config().augment.model_copy(update={"blur": (1.0, 1.0, 1.0), "grayscale": 1.0})
    pixels = torch.randint(0, 255, (2, 24, 24, 3), dtype=torch.uint8)
    crops = MultiCrop(config, seed=1, patch_px=24, gram=GramConfig(weight=1, px_multiplier=2, start_step=1))
    assert crops(pixels, 0, [0, 1]).clean_crops is None
    clean = crops(pixels, 1, [0, 1]).clean_crops
    assert clean is not None and clean.shape == (2, 2, 3, 32, 32)
    colourless = {"blur": (0.0, 0.0, 0.0), "grayscale": 0.0, "color_jitter": 0.0, "stain_jitter": 0.0}
    plain = MultiCrop(config.model_copy(update={**colourless, "global_px": 32}), seed=1, patch_px=24)
    torch.testing.assert_close(clean, plain(pixels, 1, [0, 1]).global_crops, rtol=0, atol=2e-6)


def test_each_step_draws_one_pair_of_sizes_for_the_whole_batch_by_their_weights() -> None:
    config = tiny_config(**METHODS["mixed sizes"]).augment
    crops = MultiCrop(config, seed=1, patch_px=24, gram=GramConfig(weight=1, px_multiplier=1.5))
    pixels = torch.randint(0, 255, (2, 24, 24, 3), dtype=torch.uint8)
    made = {step: crops(pixels, step, [0, 1]) for step in range(300)}
    drawn = {step: (each.global_crops.shape[-1], each.local_crops.shape[-1]) for step, each in made.items()}
    counts = {pair: list(drawn.values()).count(pair) for pair in set(drawn.values())}
    assert counts.keys() == {(8, 4), (16, 4), (16, 8)}
    assert counts[16, 8] == pytest.approx(150, abs=30) and counts[8, 4] == pytest.approx(75, abs=25)
    for step in (7, 8, 9):  # the other half of the batch, by itself and elsewhere
        own = MultiCrop(config, seed=1, patch_px=24)(pixels[1:], step, [1])
        assert own.global_crops.equal(made[step].global_crops[:, 1:])
        clean = made[step].clean_crops
        assert clean is not None and clean.shape[-1] == 1.5 * drawn[step][0]
    plain = MultiCrop(config.model_copy(update={"mixed_px": ()}), seed=1, patch_px=24)
    assert plain(pixels, 0, [0, 1]).global_crops.shape[-1] == 16


def test_a_mixture_of_sizes_is_checked_and_counted_as_a_whole() -> None:
    def figures(**augment: object) -> dict[str, object]:
        return check_training(tiny_config(augment=augment))

    large, small = figures(), figures(global_px=8, local_px=4)
    mixed = figures(mixed_px=[{"global_px": 16, "local_px": 8, "weight": 3}, MIXED[0]])
    gflop = [float(str(each["gflop_per_image"])) for each in (large, small, mixed)]
    assert gflop[2] == pytest.approx(0.75 * gflop[0] + 0.25 * gflop[1], abs=1e-3)
    assert mixed["activations_gib"] == large["activations_gib"]
    for pair, message in [
        ({"global_px": 20, "local_px": 8}, "these are the largest of all"),
        ({"global_px": 4, "local_px": 8}, "local crops are the smaller ones"),
        ({"global_px": 14, "local_px": 4}, "augment.global_px 14 is not a multiple"),
    ]:
        with pytest.raises((ValueError, UserError), match=message):
            check_training(tiny_config(augment={"mixed_px": [pair]}))
    with pytest.raises(ValueError, match=r"mixed_px is not for train\.distill"):
        tiny_config(augment={"mixed_px": MIXED}, distill={"teacher": "timm:vit_tiny_patch16_224"})
    with pytest.raises(UserError, match=r"px_multiplier 1\.25 = 10 is not a multiple"):
        check_training(tiny_config(augment={"mixed_px": MIXED}, gram={"weight": 1.0, "px_multiplier": 1.25}))


def test_health_tells_features_of_places_from_noise_and_from_copies() -> None:
    draw = torch.Generator().manual_seed(5)
    places = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0))
    smooth = torch.cat([(places * f / 8).cos() for f in (1, 2)] + [(places * f / 8).sin() for f in (1, 2)], 1)
    noise = torch.randn(2, 64, 32, generator=draw)
    classes = torch.randn(2, 32, generator=draw)
    local, noisy = dense_health(classes[:, :8], smooth.expand(2, 64, 8)), dense_health(classes, noise)
    copies = dense_health(classes, noise + 5 * classes[:, None])
    assert local[0] > 0.8 and abs(noisy[0]) < 0.1
    assert copies[1] > 0.9 and abs(noisy[1]) < 0.1


@pytest.mark.parametrize("name", METHODS)
def test_any_world_trains_alike(name: str, tmp_path: Path) -> None:
    config = tiny_config(num_steps=8, **METHODS[name])
    alone = train_legs(config, tmp_path / "1", [Leg(1, 8)])
    legs = [Leg(2, 3), Leg(3, 6, "fsdp"), Leg(2, 8, "fsdp")]
    difference = norm_difference(train_legs(config, tmp_path / "n", legs), alone)
    print(f"{name}: {difference:.2e}")
    assert difference <= 1e-5


@pytest.mark.parametrize("name", METHODS)
def test_an_interrupted_training_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    config = tiny_config(num_steps=8, **METHODS[name])
    whole = train_legs(config, tmp_path / "whole", [Leg(1, 8)])
    # Steps 1, 3, 5 and 7 make the Gram teacher anew; the first leg ends between two of them.
    parts = train_legs(config, tmp_path / "parts", [Leg(1, 5), Leg(1, 8)])
    assert [key for key, value in whole.items() if not torch.equal(value, parts[key])] == []
    plain = tiny_config(num_steps=8, ibot=METHODS[name].get("ibot", {}))
    without = train_legs(plain, tmp_path / "0", [Leg(1, 8)])
    assert norm_difference({key: whole[key] for key in without}, without) > 1e-4


def test_the_gram_teacher_is_a_copy_of_the_teacher_of_its_last_refresh() -> None:
    gram = {"weight": 1.0, "start_step": 2, "refresh_every_steps": 3, "max_refreshes": 1}
    trainer = Trainer(tiny_config(num_steps=12, gram=gram), World(8), RunLog("test"))
    teachers, terms, reached = {}, {}, ReachedStep(0, None)
    for until in range(1, 11):
        teachers[until - 1] = trainer.learner.teacher.backbone.vit.blocks[0].attn.qkv.weight.clone()
        reached = trainer.run(ArraySource(), reached, None, str, until=until)
        assert trainer.learner.gram is not None
        terms[until - 1] = trainer.learner.gram.vit.blocks[0].attn.qkv.weight.clone()
    assert all(torch.equal(terms[at], teachers[2]) for at in (2, 3, 4))
    assert all(torch.equal(terms[at], teachers[5]) for at in (5, 6, 7, 8, 9))
    assert not torch.equal(teachers[2], teachers[5])


def test_what_could_only_be_a_mistake_is_refused() -> None:
    with pytest.raises(ValueError, match="alternative to ibot"):
        tiny_config(jepa=JEPA)
    schedule = tiny_config(gram={"weight": 2.0, "start_step": 4, "warmup_steps": 4}).train.gram
    assert [schedule.weight_at(step) for step in (3, 4, 5, 7, 8, 12)] == [0.0, 0.0, 0.5, 1.5, 2.0, 2.0]
    with pytest.raises(UserError, match=r"gram.start_step 20 is not below train.num_steps 20"):
        check_training(tiny_config(gram={"weight": 1.0, "start_step": 20}))
    plain, config = check_training(tiny_config()), tiny_config(gram={"weight": 1.0})
    assert check_training(config)["state_gib"] >= plain["state_gib"]
    with pytest.raises(UserError, match="of frozen teachers"):
        check_training(config, memory_bytes=1000)
