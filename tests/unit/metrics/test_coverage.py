"""How often intervals hold the true value and tests reject, over many drawn studies (`make test-long`).

The table that it prints is the one of docs/how-to/evaluate.md.
"""

import numpy as np
import pytest

from eosin.metrics.group_counts import MIN_GROUPS, group_confusions, paired_difference
from eosin.metrics.intervals import interval

PER_PATIENT = 40
# How accuracy varies over patients: its draw, and its true mean.
WORLDS = {
    "normal, .70 ± .12": (lambda r, n: np.clip(0.7 + 0.12 * r.normal(size=n), 0.02, 0.98), 0.6997),
    "beta(9, 1), mean .90": (lambda r, n: r.beta(9, 1, n), 0.9),
    "beta(3, .4), mean .88": (lambda r, n: r.beta(3, 0.4, n), 3 / 3.4),
}


def _study(
    random: np.random.Generator, accuracy: np.ndarray, sizes: np.ndarray | int = PER_PATIENT
) -> np.ndarray:
    patient = np.repeat(np.arange(len(accuracy)), sizes)
    truth = np.arange(len(patient)) % 2
    guess = np.where(random.random(len(truth)) < accuracy[patient], truth, 1 - truth)
    return group_confusions(truth, guess, groups=[f"{p:03d}" for p in patient], num_classes=2)


@pytest.mark.long
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("num_patients", [6, 10, 20, 30])
def test_intervals_hold_the_true_value(world: str, num_patients: int) -> None:
    draw, true = WORLDS[world]
    random, num_studies, held, width = np.random.default_rng(num_patients), 1_000, 0, 0.0
    for _ in range(num_studies):
        found = interval(_study(random, draw(random, num_patients)), "balanced_accuracy")
        assert found is not None
        held += found.low <= true <= found.high
        width += found.high - found.low
    print(f"| {world} | {num_patients} | {held / num_studies:.3f} | {width / num_studies:.3f} |")
    # .93, less what a thousand studies may miss by chance.
    assert held / num_studies >= 0.93 - 2 * np.sqrt(0.93 * 0.07 / num_studies)


@pytest.mark.long
@pytest.mark.parametrize("num_patients", [6, 10, 20, 30])
def test_intervals_hold_it_where_a_few_patients_have_most_images(num_patients: int) -> None:
    random, num_studies, held, width = np.random.default_rng(num_patients), 1_000, 0, 0.0
    for _ in range(num_studies):
        sizes = np.minimum(400, 2 + 8 * random.pareto(1.1, num_patients)).astype(int)
        found = interval(_study(random, random.beta(8, 2, num_patients), sizes), "balanced_accuracy")
        assert found is not None
        held += found.low <= 0.8 <= found.high
        width += found.high - found.low
    share = held / num_studies
    print(f"| beta(8, 2), Pareto(1.1) sizes | {num_patients} | {share:.3f} | {width / num_studies:.3f} |")
    assert held / num_studies >= 0.93 - 2 * np.sqrt(0.93 * 0.07 / num_studies)


@pytest.mark.long
@pytest.mark.parametrize("num_patients", [1, 2, 3, 4, 5, 6, 10, 20, 50])
@pytest.mark.parametrize("effect", [0.0, 0.1])
def test_the_level_holds_and_effects_are_found(num_patients: int, effect: float) -> None:
    random, num_studies, rejected = np.random.default_rng(num_patients), 500, 0
    for _ in range(num_studies):
        accuracy = [np.clip(0.7 + shift + 0.15 * random.normal(size=num_patients), 0.02, 0.98)
                    for shift in (0.0, effect)]  # fmt: skip
        found = paired_difference(
            _study(random, accuracy[0]), _study(random, accuracy[1]), "balanced_accuracy"
        )
        if num_patients < MIN_GROUPS:
            assert found.p_value is None
            continue
        assert found.p_value is not None
        rejected += found.p_value < 0.05
    share = rejected / num_studies
    print(f"| {num_patients} | {effect} | {share if num_patients >= MIN_GROUPS else 'no test'} |")
    if effect == 0:
        assert share <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / num_studies)
    elif num_patients == 50:
        assert share > 0.8
