"""Counts and hints as messages say them."""

import pytest

from eosin.words import counted, nearest_of


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [(1, "failed check", "1 failed check"), (0, "slide", "0 slides"), (2, "patch", "2 patches"),
     (3, "class", "3 classes")],
)  # fmt: skip
def test_a_count_agrees_with_its_noun(number: int, noun: str, said: str) -> None:
    assert counted(number, noun) == said


def test_a_name_that_is_near_is_asked_for_else_what_there_is_or_where_it_is_listed() -> None:
    known = ["vit_small", "vit_smaller", "swin"]
    assert nearest_of("vit_smal", known) == "did you mean vit_small?"
    assert nearest_of("vit_smal", known, most=2) == "did you mean vit_small, vit_smaller?"
    assert nearest_of("resnet", known) == "there are: vit_small, vit_smaller, swin"
    assert nearest_of("resnet", known, instead="`list` shows them") == "`list` shows them"
    assert nearest_of("resnet", []) == "there are: none"
