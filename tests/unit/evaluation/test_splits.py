"""Splits: official ones kept, missing ones drawn stably, patients never on two sides."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosin.evaluation.datasets.dataset import Sample
from eosin.evaluation.datasets.splits import Split, split_samples


def _samples(count: int, *, num_classes: int = 3, patients: int = 0, split: str = "") -> list[Sample]:
    return [
        Sample(
            f"{split}{i}.png",
            label=f"c{i % num_classes}",
            split=split,
            patient=f"{split}p{i % patients}" if patients else "",
        )
        for i in range(count)
    ]


def _parts(split: Split) -> dict[str, tuple[int, ...]]:
    return {"train": split.train, "val": split.val, "test": split.test}


def test_an_official_split_is_kept() -> None:
    samples = _samples(3, split="test") + _samples(4, split="train") + _samples(2, split="val")
    split = split_samples(samples)
    assert _parts(split) == {"train": (3, 4, 5, 6), "val": (7, 8), "test": (0, 1, 2)}
    assert (split.judged, split.notes) == ("test", ())


def test_without_test_the_figures_are_taken_on_validation() -> None:
    split = split_samples(_samples(6, split="train") + _samples(3, split="val"))
    assert split.judged_indices == (6, 7, 8)
    assert "validation" in split.notes[0]


def test_without_validation_a_fifth_of_train_is_drawn_and_test_is_untouched() -> None:
    split = split_samples(_samples(60, split="train") + _samples(30, split="test"))
    assert split.test == tuple(range(60, 90))
    assert len(split.val) == 12
    assert sorted(split.train + split.val) == list(range(60))


@pytest.mark.parametrize("named", ["", "train", "test"])
def test_one_part_alone_is_drawn_apart(named: str) -> None:
    samples = _samples(90, split=named)
    split = split_samples(samples)
    assert [len(part) for part in (split.train, split.val, split.test)] == [54, 18, 18]
    for part in _parts(split).values():
        assert len(set(Counter(samples[i].label for i in part).values())) == 1, "every class alike"


def test_samples_without_a_split_beside_an_official_one_are_left_out() -> None:
    split = split_samples(_samples(6, split="train") + _samples(3, split="test") + _samples(5))
    assert max(split.train + split.val + split.test) == 8
    assert any("5 samples without a split" in note for note in split.notes)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 3)), min_size=3, max_size=30),
    order=st.randoms(use_true_random=False),
)
def test_no_patient_is_on_two_sides_whatever_the_order(counts: list[tuple[int, int]], order: object) -> None:
    samples = [
        Sample(f"{patient}-{i}.png", label=f"c{(i + shift) % 4}", patient=f"p{patient}")
        for patient, (count, shift) in enumerate(counts)
        for i in range(count)
    ]
    split = split_samples(samples)
    sides = [{samples[i].patient for i in part} for part in _parts(split).values()]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert sum(len(part) for part in _parts(split).values()) == len(samples)
    assert split.train

    shuffled = list(samples)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    again = split_samples(shuffled)
    for name, part in _parts(split).items():
        assert {samples[i].source for i in part} == {shuffled[i].source for i in _parts(again)[name]}


@pytest.mark.parametrize("num_patients", [3, 5, 12, 40])
def test_patients_are_dealt_so_that_each_part_has_every_class(num_patients: int) -> None:
    samples = _samples(num_patients * 24, num_classes=8, patients=num_patients)
    samples = [
        Sample(s.source, label=f"c{(i // num_patients) % 8}", patient=s.patient)
        for i, s in enumerate(samples)
    ]
    split = split_samples(samples)
    for part in _parts(split).values():
        assert {samples[i].label for i in part} == {f"c{c}" for c in range(8)}
    assert 0.1 <= len(split.test) / len(samples) <= 0.34


def test_two_patients_are_split_by_image_and_it_is_said() -> None:
    split = split_samples(_samples(60, patients=2))
    assert split.test
    assert any("only 2 patients" in note for note in split.notes)


def test_a_patient_on_both_sides_of_a_given_split_is_told() -> None:
    samples = [
        Sample(
            f"{split}{i}", "ab"[i % 2], split, patient=f"p{i % 3}" if split == "train" else f"p{2 + i % 2}"
        )
        for split in ("train", "val", "test")
        for i in range(6)
    ]
    notes = split_samples(samples).notes
    assert any(
        "both sides of the given split, so figures flatter: 2 patients" in note and "p2" in note
        for note in notes
    )
    apart = [
        Sample(f"{s}{i}", "ab"[i % 2], s, patient=f"{s}{i}") for s in ("train", "test") for i in range(10)
    ]
    assert not any("both sides of the given" in note for note in split_samples(apart).notes)


def test_half_the_patients_unknown_is_told_where_the_split_is_drawn() -> None:
    samples = [Sample(f"i{i}", "ab"[i % 2], patient=f"p{i}" if i % 2 else "") for i in range(40)]
    assert any("20 of 40 samples have no patient: drawn by image" in n for n in split_samples(samples).notes)
