"""Counts with their noun, as messages say them."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """`1 slide`, `2 slides`, `0 patches`: the number and its noun, given in the singular."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith(('s', 'x', 'ch', 'sh')) else 's'}"
