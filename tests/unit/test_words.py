"""Counts as messages say them."""

import pytest

from eosin.words import counted


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [(1, "failed check", "1 failed check"), (0, "slide", "0 slides"), (2, "patch", "2 patches"),
     (3, "class", "3 classes")],
)  # fmt: skip
def test_a_count_agrees_with_its_noun(number: int, noun: str, said: str) -> None:
    assert counted(number, noun) == said
