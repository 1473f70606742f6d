"""Counts, sizes and lists, as messages say them."""

import difflib
from collections.abc import Iterable, Sequence


def counted(number: int, noun: str) -> str:
    """`1 slide`, `2 slides`, `0 patches`: the number and its noun, given in the singular."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}{'es' if noun.endswith(('s', 'x', 'ch', 'sh')) else 's'}"


def size_text(num_bytes: float) -> str:
    """Bytes in the unit that fits them, to three digits: 14 kB, 1.03 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} PB"


def first_of(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """`a, b and 3 more`: the first `most` of `names`, and how many others there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def nearest_of(
    name: str, known: Iterable[str], *, none: str = "none", instead: str = "", most: int = 1
) -> str:
    """`did you mean X?`, of `most` names; where none is near `instead`, or `there are: …` (or `none`)."""
    names = list(known)
    if near := difflib.get_close_matches(name, names, n=most):
        return f"did you mean {', '.join(near)}?"
    return instead or f"there are: {', '.join(names) or none}"


def repeated(names: Sequence[str]) -> str:
    """The names that stand there more than once, sorted: `a, b`; empty where none does."""
    return ", ".join(sorted({name for name in names if names.count(name) > 1}))
