"""Draws are pure, uniform and independent of what else is drawn."""

import numpy as np

from eosin.patches.sampling.counter_rng import normals, uniforms


def test_a_draw_does_not_depend_on_its_batch() -> None:
    whole = uniforms(9, "crop", 4, range(50), 6)
    assert np.array_equal(whole[[31, 7]], uniforms(9, "crop", 4, [31, 7], 6))
    assert np.array_equal(whole[:, :2], uniforms(9, "crop", 4, range(50), 2))


def test_every_part_of_the_key_matters() -> None:
    base = uniforms(1, "crop", 2, [3], 4)
    others = [uniforms(2, "crop", 2, [3], 4), uniforms(1, "spot", 2, [3], 4),
              uniforms(1, "crop", 3, [3], 4), uniforms(1, "crop", 2, [4], 4)]  # fmt: skip
    assert not any(np.isin(base, other).any() for other in others)


def test_swapping_step_and_index_gives_other_draws() -> None:
    assert not np.array_equal(uniforms(0, "crop", 5, [6], 3), uniforms(0, "crop", 6, [5], 3))


def test_uniform_over_steps_samples_and_draw_numbers() -> None:
    drawn = np.stack([uniforms(17, "crop", step, range(100), 8) for step in range(50)])
    assert drawn.min() >= 0.0 and drawn.max() < 1.0
    for axis_values in (drawn[:, 0, 0], drawn[0, :, 0], drawn.ravel()):
        counts = np.histogram(axis_values, bins=10, range=(0, 1))[0]
        expected = len(axis_values) / 10
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square < 33.7  # 9 degrees of freedom, p = 0.0001


def test_neighbouring_keys_are_uncorrelated() -> None:
    steps = np.concatenate([uniforms(0, "crop", step, [0], 64) for step in range(400)])
    correlation = np.corrcoef(steps[:-1].ravel(), steps[1:].ravel())[0, 1]
    assert abs(correlation) < 0.03


def test_huge_and_negative_words_are_taken_modulo_64_bits() -> None:
    assert uniforms(2**70 + 5, "crop", 0, [0], 1) == uniforms(5, "crop", 0, [0], 1)
    assert np.isfinite(uniforms(-1, "crop", 0, [2**63], 1)).all()


def test_normals_have_the_moments_of_a_normal_distribution() -> None:
    drawn = uniforms(3, "norm", 0, range(40_000), 2)
    values = normals(drawn[:, 0], drawn[:, 1])
    assert np.isfinite(values).all()
    assert abs(values.mean()) < 0.02 and abs(values.std() - 1.0) < 0.02
    assert abs((values**4).mean() - 3.0) < 0.15
