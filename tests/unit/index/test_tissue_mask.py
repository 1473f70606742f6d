"""The foreground share of a box, against counting by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eosin.index.tissue_mask as module
from eosin.errors import PermanentError
from eosin.index.tissue_mask import TissueMask

RNG = np.random.default_rng(5)


def share_by_hand(mask: np.ndarray, px: float, py: float, box: tuple[float, float, float, float]) -> float:  # type: ignore[type-arg]
    """Overlap of the box with every mask pixel, added up."""
    x, y, w, h = box
    rows, columns = np.indices(mask.shape)
    across = np.clip(np.minimum((columns + 1) * px, x + w) - np.maximum(columns * px, x), 0, None)
    down = np.clip(np.minimum((rows + 1) * py, y + h) - np.maximum(rows * py, y), 0, None)
    return float((across * down * mask).sum() / (w * h))


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 50), height=st.integers(1, 40), width=st.integers(1, 40),
    px=st.floats(0.5, 40), py=st.floats(0.5, 40),
    place=st.tuples(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5)),
    size=st.tuples(st.floats(0.001, 2), st.floats(0.001, 2)),
)  # fmt: skip
def test_a_fraction_is_the_overlap_by_hand(
    seed: int,
    height: int,
    width: int,
    px: float,
    py: float,
    place: tuple[float, float],
    size: tuple[float, float],
) -> None:
    array = np.random.default_rng(seed).random((height, width)) < 0.4
    mask = TissueMask.from_array(array, px, py)
    box = (place[0] * width * px, place[1] * height * py, size[0] * width * px, size[1] * height * py)
    truth = share_by_hand(array, px, py, box)
    assert mask.fraction(*box) == pytest.approx(truth, abs=1e-6)
    assert mask.fraction_of_one(*box) == mask.fraction(*box)
    u0, v0, u1, v1 = (
        np.array(each) for each in (box[0] / px, box[1] / py, (box[0] + box[2]) / px, (box[1] + box[3]) / py)
    )
    for inside in (module._in_windows, module._in_sums):
        assert inside(mask, u0, v0, u1, v1) / ((u1 - u0) * (v1 - v0)) == pytest.approx(truth, abs=1e-6)


def test_arrays_of_boxes_are_boxes_one_by_one() -> None:
    mask = TissueMask.from_array(RNG.random((50, 70)) < 0.5, 32.0, 31.5)
    x, y = RNG.uniform(-100, 2400, (2, 100))
    together = mask.fraction(x, y, 256.0, 300.0)
    assert together.shape == (100,) and together.dtype == np.float64
    assert together.tolist() == [mask.fraction(a, b, 256.0, 300.0) for a, b in zip(x, y, strict=True)]


def test_one_box_of_a_large_mask_is_looked_at_to_the_same_bit() -> None:
    mask = TissueMask.from_array(RNG.random((200, 170)) < 0.5, 32.0, 31.5)
    for x, y, w in RNG.uniform((-100, -100, 50), 3000, (40, 3)):
        assert mask.fraction_of_one(float(x), float(y), float(w), 70.5) == mask.fraction(x, y, w, 70.5)
    assert mask.fraction_of_one(0, 0, 64, 64) == mask.fraction(0, 0, 64, 64)
    with pytest.raises(ValueError, match="above 0"):
        mask.fraction_of_one(0, 0, 0, 64)


def test_packing_loses_nothing() -> None:
    array = RNG.random((37, 53)) < 0.3
    mask = TissueMask.from_array(array, 16.0, 8.0)
    np.testing.assert_array_equal(mask.array, array)
    assert mask.area == array.sum() * 128.0


@pytest.mark.parametrize("size", [(0.0, 5.0), (5.0, -1.0)])
def test_a_box_without_area_is_refused(size: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="width and a height"):
        TissueMask.from_array(np.ones((5, 5), bool), 1, 1).fraction(0, 0, *size)


@pytest.mark.parametrize(
    "packed", [b"", b"rubbish", TissueMask.from_array(np.ones((2, 2), bool), 1, 1).packed]
)
def test_damaged_bits_are_said_so(packed: bytes) -> None:
    with pytest.raises(PermanentError, match="damaged"):
        TissueMask(packed, 100, 100, 1.0, 1.0).fraction(0, 0, 5, 5)


def test_memory_of_the_tables_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = module._Cache(module._summed, 3 * 101 * 101 * 4)
    monkeypatch.setattr(module, "_SUMS", cache)
    monkeypatch.setattr(module, "_WINDOW_COST", 10**9)
    masks = [TissueMask.from_array(RNG.random((100, 100)) < 0.5, 1, 1) for _ in range(10)]
    shares = [mask.fraction(3, 4, 50, 60) for mask in masks]
    assert len(cache._held) == 3
    assert [mask.fraction(3, 4, 50, 60) for mask in masks] == shares
