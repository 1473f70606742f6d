"""Changes of a patch that keep its tissue."""

import numpy as np
import pytest

from eosin.evaluation.embeddings.embed import CHANGES, flip, rotate, stain


def _patch(seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(60, 256, (24, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_a_change_keeps_shape_and_alters_pixels_and_repeats(name: str) -> None:
    patch = _patch()
    before = patch.copy()
    changed = CHANGES[name](patch)
    assert (changed.shape, changed.dtype) == (patch.shape, np.uint8)
    assert (changed != patch).any()
    assert (CHANGES[name](patch) == changed).all()
    assert (patch == before).all(), "the patch itself is left alone"


def test_four_turns_and_two_flips_are_none() -> None:
    patch = _patch()
    assert (rotate(rotate(rotate(rotate(patch)))) == patch).all()
    assert (flip(flip(patch)) == patch).all()


def test_more_haematoxylin_is_bluer_and_darker_and_less_eosin_is_lighter() -> None:
    nucleus = np.full((4, 4, 3), (95, 85, 160), dtype=np.uint8)
    stroma = np.full((4, 4, 3), (230, 130, 215), dtype=np.uint8)
    assert stain(nucleus).mean() < nucleus.mean()
    assert stain(stroma).mean() > stroma.mean()


def test_glass_stays_glass() -> None:
    glass = np.full((4, 4, 3), 255, dtype=np.uint8)
    assert abs(stain(glass).astype(int) - 255).max() <= 1
