"""Which patients are held out: the same whatever else is there, never all of them, never a part of one."""

import pytest

from eosin.index.rows import SlideRow
from eosin.index.split import held_patients, linked_patients, patient_of
from eosin.slides.model import SlideHeader


def row(slide: str, patient: str = "") -> SlideRow:
    return SlideRow(slide, "ok", "", SlideHeader((), "", "", (), None, None), patient=patient)


def split_patients(rows: list[SlideRow], fraction: float, seed: int = 0) -> frozenset[str]:
    return held_patients(linked_patients(rows), fraction, seed)


def test_the_share_held_out_is_about_the_fraction() -> None:
    share = len(split_patients([row(f"{i}.svs") for i in range(5000)], 0.2)) / 5000
    assert share == pytest.approx(0.2, abs=0.02)


def test_slides_of_a_patient_stay_together() -> None:
    rows = [row(f"{i}-{patient}.svs", f"P{patient}") for patient in range(50) for i in range(5)]
    alone = [row(f"{patient}.svs", f"P{patient}") for patient in range(50)]
    assert split_patients(rows, 0.5) == split_patients(alone, 0.5)


def test_a_patient_does_not_move_when_others_come() -> None:
    some = [row(f"{i}.svs", f"P{i}") for i in range(100)]
    more = some + [row(f"n{i}.svs", f"N{i}") for i in range(400)]
    before, after = split_patients(some, 0.3), split_patients(more, 0.3)
    assert before == {patient_of(each) for each in some} & after


def test_another_seed_is_another_split() -> None:
    rows = [row(f"{i}.svs") for i in range(100)]
    assert split_patients(rows, 0.3) != split_patients(rows, 0.3, seed=1)


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("num", [2, 3, 5])
def test_with_two_patients_neither_side_is_empty(fraction: float, num: int) -> None:
    for seed in range(20):
        held = split_patients([row(f"{i}.svs") for i in range(num)], fraction, seed)
        assert 0 < len(held) < num


def test_with_one_patient_or_no_fraction_nothing_is_held_out() -> None:
    assert not split_patients([row("a.svs", "P"), row("b.svs", "P")], 0.5)
    assert not split_patients([row("a.svs"), row("b.svs")], 0.0)
    assert not split_patients([], 0.5)
