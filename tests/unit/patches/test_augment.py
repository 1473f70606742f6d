"""Multi-crop: what a view is, and that it belongs to its sample alone."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from eosin.config.augment import AugmentConfig
from eosin.patches.augment import MultiCrop, axis_matrices, views

PLAIN = {"rotate": False, "color_jitter": 0.0, "stain_jitter": 0.0, "grayscale": 0.0, "blur": (0.0, 0.0, 0.0),
             "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # fmt: skip


def patches(n: int, side_px: int, seed: int = 0) -> torch.Tensor:
    """Smooth coloured noise, uint8 [n, side_px, side_px, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    large = [cv2.resize(image, (side_px, side_px)) for image in coarse]
    return torch.from_numpy(np.array(large, dtype=np.uint8).reshape(n, side_px, side_px, 3))


def multicrop(side_px: int = 96, seed: int = 5, **changes: object) -> MultiCrop:
    values: dict[str, object] = {"global_px": 64, "local_px": 32, "num_local": 3, **changes}
    return MultiCrop(AugmentConfig.model_validate(values), seed=seed, patch_px=side_px)


@pytest.mark.parametrize(
    "split", [[[0, 1, 2, 3, 4, 5, 6]], [[6], [0, 3], [5, 4, 2, 1]], [[i] for i in range(7)]]
)
def test_any_split_of_a_batch_gives_the_same_bits(split: list[list[int]]) -> None:
    crop, pixels = multicrop(solarize=0.5), patches(7, 96)
    indices = [40, 2, 17, 3, 999, 5, 6]
    whole = crop(pixels, 12, indices)
    for part in split:
        got = crop(pixels[part], 12, [indices[i] for i in part])
        assert torch.equal(got.global_crops, whole.global_crops[:, part])
        assert torch.equal(got.local_crops, whole.local_crops[:, part])


def test_step_seed_and_view_change_the_crop() -> None:
    pixels = patches(2, 96)
    base = multicrop()(pixels, 3, [0, 1])
    assert not torch.equal(base.global_crops, multicrop()(pixels, 4, [0, 1]).global_crops)
    assert not torch.equal(base.global_crops, multicrop(seed=6)(pixels, 3, [0, 1]).global_crops)
    assert not torch.equal(base.global_crops[0], base.global_crops[1])


@pytest.mark.parametrize(("max_aspect", "least"), [(4 / 3, 1.2), (1.05, 1.03), (1.0, 1.0)])
def test_crops_are_stretched_as_far_as_the_key_allows(max_aspect: float, least: float) -> None:
    crop = multicrop(max_aspect=max_aspect)
    drawn = crop._draw(3, range(200), range(2), (0.3, 0.4))
    aspects = np.exp(np.abs(np.log(drawn.width / drawn.height)))
    assert least <= aspects.max() <= max_aspect + 1e-9
    assert (drawn.width * drawn.height).min() / 96**2 >= 0.3 - 1e-9


def test_shapes_and_normalisation() -> None:
    crops = multicrop()(patches(5, 96), 0, range(5))
    assert crops.global_crops.shape == (2, 5, 3, 64, 64) and crops.local_crops.shape == (3, 5, 3, 32, 32)
    assert crops.global_crops.dtype == torch.float32
    assert crops.global_crops.min() >= -1.0 and crops.global_crops.max() <= 1.0


def test_no_local_crops_and_no_samples_are_empty() -> None:
    assert multicrop(num_local=0)(patches(2, 96), 0, [0, 1]).local_crops.shape == (0, 2, 3, 32, 32)
    assert multicrop()(patches(0, 96), 0, []).global_crops.shape == (2, 0, 3, 64, 64)


def test_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match="96"):
        multicrop()(patches(2, 80), 0, [0, 1])


def test_whole_patch_is_an_antialiased_resize() -> None:
    pixels = patches(3, 90)
    got = multicrop(90, global_scale=(1.0, 1.0), **PLAIN)(pixels, 0, range(3)).global_crops[0]
    image = pixels.permute(0, 3, 1, 2).float() / 255
    want = F.interpolate(image, size=(64, 64), mode="bicubic", antialias=True, align_corners=False)
    assert (got - want.clamp(0, 1)).abs().max() < 4e-6


@pytest.mark.parametrize("box", [(0, 0, 256, 256), (13, 40, 144, 201), (90, 17, 57, 61), (199, 187, 57, 69)])
@pytest.mark.parametrize("out_px", [224, 96])
def test_crops_are_as_sharp_as_those_of_the_references(box: tuple[int, int, int, int], out_px: int) -> None:
    """Pillow's `resize(box=…, BICUBIC)`, which torchvision's RandomResizedCrop calls in DINO and DINOv2."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.float32)
    pixels = np.clip(127.5 + 1.6 * (cv2.GaussianBlur(noise, (0, 0), 0.8) - 127.5), 0, 255).astype(np.uint8)
    top, left, height, width = box
    cut = Image.fromarray(pixels[top : top + height, left : left + width])
    want = np.asarray(cut.resize((out_px, out_px), Image.Resampling.BICUBIC), np.float32) / 255
    source = torch.from_numpy(pixels)[None].float() / 255
    rows, columns = (
        axis_matrices(
            torch.tensor([float(start)]), torch.tensor([float(length)]), torch.tensor([False]),
            torch.zeros(1), 256, out_px,
        )
        for start, length in ((top, height), (left, width))
    )  # fmt: skip
    got = views(source, rows, columns, 1)[0, 0].permute(1, 2, 0).clamp(0, 1).numpy()
    # At the border ours sees the tissue beyond the crop, Pillow nothing.
    inner = slice(12, -12)
    assert np.abs(got - want)[inner, inner].mean() < 0.002, "Pillow rounds to whole values twice"
    sharpness = [cv2.Laplacian(image, cv2.CV_32F)[inner, inner].var() for image in (got, want)]
    assert sharpness[0] == pytest.approx(sharpness[1], rel=0.05)


@pytest.mark.parametrize("sigma_px", [0.0, 0.6, 1.7])
def test_blur_equals_a_gaussian_filter_away_from_the_border(sigma_px: float) -> None:
    image = patches(1, 64).float() / 255
    whole, zero = torch.tensor([64.0]), torch.tensor([0.0])
    matrix = axis_matrices(zero, whole, torch.tensor([False]), torch.tensor([sigma_px]), 64, 64)
    got = views(image, matrix, matrix, 1)[0, 0].permute(1, 2, 0).numpy()
    source = image[0].numpy()
    want = cv2.GaussianBlur(source, (25, 25), sigma_px) if sigma_px else source
    assert np.abs(got - want)[12:-12, 12:-12].max() < 1e-4


def test_rotations_and_flips_are_the_eight_of_the_square() -> None:
    plain = {**PLAIN, "rotate": True, "global_scale": (1.0, 1.0), "global_px": 24, "num_local": 0}
    pixels = patches(1, 24).repeat(200, 1, 1, 1)
    got = multicrop(24, **plain)(pixels, 0, range(200)).global_crops.flatten(0, 1)
    image = pixels[0].permute(2, 0, 1).float() / 255
    square = [turned if k < 4 else turned.transpose(1, 2)
              for k in range(8) for turned in [torch.rot90(image, k % 4, (1, 2))]]  # fmt: skip
    nearest = torch.stack([(got - form).abs().amax((1, 2, 3)) for form in square])
    assert nearest.amin(0).max() < 1e-5
    assert np.bincount(nearest.argmin(0).numpy(), minlength=8).min() > 20


def test_area_is_uniform_in_its_range_and_the_crop_stays_inside() -> None:
    crop = multicrop(100, global_scale=(0.3, 0.9))
    drawn = crop._draw(1, range(4000), range(1), (0.3, 0.9))
    assert (drawn.top >= 0).all() and (drawn.top + drawn.height <= 100 + 1e-9).all()
    assert (drawn.left >= 0).all() and (drawn.left + drawn.width <= 100 + 1e-9).all()
    share = drawn.height * drawn.width / 100**2
    counts = np.histogram(share, bins=6, range=(0.3, 0.9))[0]
    assert counts.sum() == 4000 and ((counts - 4000 / 6) ** 2 / (4000 / 6)).sum() < 25.7
    aspect = drawn.width / drawn.height
    assert aspect.min() >= 0.75 - 1e-9 and aspect.max() <= 4 / 3 + 1e-9


def test_gray_crops_have_three_equal_channels_and_only_those_drawn() -> None:
    crops = multicrop(grayscale=0.5)(patches(300, 96), 0, range(300)).global_crops[0]
    gray = (crops.amax(1) - crops.amin(1)).amax((1, 2)) < 1e-5
    assert 110 < int(gray.sum()) < 190


def test_solarise_touches_the_second_global_crop_only() -> None:
    plain = {**PLAIN, "global_scale": (1.0, 1.0), "local_scale": (1.0, 1.0)}
    pixels = patches(4, 96)
    off, on = (multicrop(solarize=p, **plain)(pixels, 0, range(4)) for p in (0.0, 1.0))
    assert torch.equal(off.global_crops[0], on.global_crops[0])
    assert torch.equal(off.local_crops, on.local_crops)
    assert on.global_crops[1].max() <= 0.5 < off.global_crops[1].max()


def test_stain_jitter_moves_colours_by_about_its_strength() -> None:
    plain = {**PLAIN, "global_scale": (1.0, 1.0), "stain_jitter": 0.05}
    pixels = torch.full((400, 96, 96, 3), 128, dtype=torch.uint8)
    crops = multicrop(**plain)(pixels, 0, range(400)).global_crops[0, :, :, 0, 0]
    density = -torch.log(crops)
    spread = density.std(0)
    assert (spread > 0.02).all() and (spread < 0.15).all()
    assert abs(float(density.mean()) + np.log(128 / 255)) < 0.02


def test_white_glass_stays_finite_and_within_range() -> None:
    for value in (0, 255):
        pixels = torch.full((8, 96, 96, 3), value, dtype=torch.uint8)
        crops = multicrop()(pixels, 0, range(8)).global_crops
        assert torch.isfinite(crops).all() and crops.min() >= -1.0 and crops.max() <= 1.0
