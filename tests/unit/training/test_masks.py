"""Block masks: exact counts, the right crops, pure in the generator's seed."""

import numpy as np
import pytest

from eosin.config.train import IbotConfig
from eosin.training.engine.microbatch import draw_mask, draw_masks, mask_counts


@pytest.mark.parametrize("grid", [3, 8, 14, 16])
def test_every_count_is_met_exactly(grid: int) -> None:
    rng = np.random.default_rng(grid)
    for count in {0, 1, 3, grid, grid * grid // 2, grid * grid - 1, grid * grid}:
        assert draw_mask(count, grid, rng).sum() == count


def test_half_the_crops_are_masked_within_the_range_and_the_total_never_changes() -> None:
    config = IbotConfig()
    totals = set()
    for seed in range(20):
        masks = draw_masks(config, 12, 14, np.random.default_rng(seed))
        assert masks.shape == (12, 196) and masks.dtype == bool
        counts = masks.sum(1)
        assert (counts > 0).sum() == 6
        assert all(0.1 * 196 - 1 <= count <= 0.5 * 196 for count in counts[counts > 0])
        totals.add(int(counts.sum()))
    assert totals == {sum(mask_counts(config, 12, 196))}


def test_masks_come_in_blocks() -> None:
    """A hidden patch's right neighbour is hidden more often than the ratio says."""
    masks = np.stack([draw_mask(50, 14, np.random.default_rng(seed)) for seed in range(40)])
    both = (masks[:, :, :-1] & masks[:, :, 1:]).sum()
    assert both / masks[:, :, :-1].sum() > 1.8 * 50 / 196


def test_draws_repeat_and_differ() -> None:
    config = IbotConfig()
    one, again, other = (draw_masks(config, 8, 8, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
