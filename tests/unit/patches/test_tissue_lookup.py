"""The bits of a mask answer as its summed-area table does."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest

from eosin.errors import PermanentError
from eosin.index.tissue_mask import TissueMask
from eosin.patches.tissue_lookup import TissueLookup


@pytest.mark.parametrize("width", [64, 61, 7, 1])
@pytest.mark.parametrize("pixel_px", [32.0, 7.3, 1.0])
def test_any_box_has_the_share_that_the_table_says(width: int, pixel_px: float) -> None:
    rng = np.random.default_rng(width)
    mask = TissueMask.from_array(rng.random((43, width)) < 0.4, pixel_px, pixel_px * 1.1)
    slide_px = np.array([width * pixel_px, 43 * pixel_px * 1.1])
    lookup = TissueLookup()
    for _ in range(200):
        size = rng.random(2) * slide_px * 0.9 + 0.05
        corner = rng.random(2) * (slide_px - size)
        corner = np.floor(corner) if rng.random() < 0.5 else corner
        want = mask.fraction(*corner, *size)
        assert lookup.share(0, mask, *corner, *size) == pytest.approx(want, abs=1e-9)


def test_the_whole_slide_is_a_box() -> None:
    mask = TissueMask.from_array(np.eye(10, dtype=bool), 8.0, 8.0)
    assert TissueLookup().share(0, mask, 0, 0, 80, 80) == pytest.approx(0.1)


def test_masks_are_told_apart_and_dropped_when_there_is_no_room() -> None:
    masks = [TissueMask.from_array(np.full((80, 80), bool(i % 2)), 1.0, 1.0) for i in range(5)]
    lookup = TissueLookup(max_bytes=1700)
    for _ in range(2):
        assert [lookup.share(i, mask, 3, 3, 9, 9) for i, mask in enumerate(masks)] == [0, 1, 0, 1, 0]
    assert lookup._bits.num_bytes <= 1700


@pytest.mark.parametrize("packed", [b"\0" * 20, zlib.compress(b"\0" * 3)])
def test_damaged_bits_are_no_crash(packed: bytes) -> None:
    mask = replace(TissueMask.from_array(np.ones((20, 20), bool), 1.0, 1.0), packed=packed)
    with pytest.raises(PermanentError, match="damaged"):
        TissueLookup().share(0, mask, 0, 0, 5, 5)
