"""What the values of a mask mean, and tiles that show every pixel once."""

import numpy as np
import pytest
import torch
from PIL import Image

from eosin.evaluation.datasets.masks import IGNORE, infer_coding, load_mask
from eosin.evaluation.embeddings.tokens import cut, draw, grid
from eosin.evaluation.heads.decoder import dice_loss, pixel_confusion
from eosin.evaluation.transform import BadImage
from eosin.metrics.classification import dice
from tests.support.evaluation import encoded


@pytest.mark.parametrize(
    ("masks", "num_classes", "is_binary"),
    [
        ([{0, 255}, {0}], 2, True),
        ([{0, 1}, {0, 255}], 2, True),
        ([{0, 1}], 2, False),
        ([{0, 1, 3}, {2}], 4, False),
        ([{0, 1, 3}, {0, 255}], 4, False),
        ([{0, 1}, {0, 90, 200}], 2, False),
    ],
)
def test_values_of_all_masks_speak_together(masks: list[set[int]], num_classes: int, is_binary: bool) -> None:
    coding = infer_coding(map(frozenset, masks), num_classes=None, ignore_value=None)
    assert (coding.num_classes, coding.is_binary) == (num_classes, is_binary)


def test_255_beside_class_indices_is_not_guessed() -> None:
    coding = infer_coding([frozenset({0, 1, 255})], num_classes=None, ignore_value=None)
    assert "255" in coding.unknown([0, 1, 255])
    coding = infer_coding([frozenset({0, 1, 255})], num_classes=None, ignore_value=255)
    assert coding.unknown([0, 1, 255]) == ""
    assert coding.classes(np.array([[0, 1, 255]])).tolist() == [[0, 1, IGNORE]]


def test_a_value_beyond_the_named_classes_is_unknown() -> None:
    coding = infer_coding([frozenset({0, 1, 2})], num_classes=2, ignore_value=None)
    assert "2" in coding.unknown([0, 1, 2])
    assert coding.unknown([0, 1]) == ""


def test_palette_indices_count_and_colours_do_not() -> None:
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8)).convert("P")
    palette.putdata([0, 1, 2, 1])
    assert load_mask(encoded(palette)).tolist() == [[0, 1], [2, 1]]
    grey = np.repeat(np.array([[[0], [3]]], dtype=np.uint8), 3, axis=2)
    assert load_mask(encoded(Image.fromarray(grey))).tolist() == [[0, 3]]
    with pytest.raises(BadImage, match="colours"):
        load_mask(encoded(Image.new("RGB", (2, 2), "red")))
    bits = Image.fromarray(np.array([[True, False]]))
    assert load_mask(encoded(bits)).tolist() == [[1, 0]]


@pytest.mark.parametrize(("width", "height"), [(64, 64), (70, 33), (20, 90), (5, 5)])
def test_every_pixel_is_in_one_tile(width: int, height: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)
    classes = np.arange(height * width).reshape(height, width) % 7
    counted = np.zeros(7, dtype=np.int64)
    for tile in grid(0, width, height, 32):
        pixels, labels = cut(image, classes.astype(np.uint8), tile, 32)
        counted += np.bincount(labels[labels != IGNORE], minlength=7)
        y, x = np.argwhere(labels != IGNORE)[0]
        assert (pixels[y, x] == image[tile.y_px + y, tile.x_px + x]).all()
        assert labels[y, x] == classes[tile.y_px + y, tile.x_px + x]
    assert counted.tolist() == np.bincount(classes.ravel(), minlength=7).tolist()


def test_a_draw_of_tiles_is_stable_and_in_order() -> None:
    tiles = grid(0, 320, 320, 32)
    drawn = draw(tiles, ["a"], 30)
    assert drawn == draw(tiles, ["a"], 30)
    assert drawn == [tile for tile in tiles if tile in set(drawn)]
    assert len(drawn) == 30
    assert drawn != draw(tiles, ["b"], 30)


def test_dice_by_hand() -> None:
    # Class 1: 3 right, 1 missed, 2 too many.
    assert dice([[4, 2, 0], [1, 3, 0], [0, 0, 0]]) == [pytest.approx(8 / 11), pytest.approx(6 / 9), None]
    truth = np.array([[[0, 1, IGNORE]]], dtype=np.uint8)
    assert pixel_confusion(truth, np.array([[[1, 1, 0]]], dtype=np.uint8), 2).tolist() == [[0, 1], [0, 1]]


def test_the_loss_is_zero_when_right_and_blind_to_ignored_pixels() -> None:
    classes = torch.tensor([[[0, 1], [1, IGNORE]]], dtype=torch.uint8)
    right = 40 * torch.tensor([[[[1.0, -1], [-1, 1]], [[-1.0, 1], [1, -1]], [[-1.0, -1], [-1, -1]]]])
    assert dice_loss(right, classes).item() == pytest.approx(0, abs=1e-4)
    other = right.clone()
    other[..., 1, 1] = torch.tensor([-3.0, 5.0, 9.0])
    assert dice_loss(other, classes).item() == pytest.approx(dice_loss(right, classes).item())
    assert dice_loss(-right, classes).item() > 0.9
