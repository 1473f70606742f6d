"""The held-out split: by patient, by a stable hash, whatever else is in the snapshot."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from eosin.index.rows import SlideRow


def patient_of(row: SlideRow) -> str:
    """What must not be torn apart by a split: the patient, or the slide where none is known."""
    return f"patient:{row.patient}" if row.patient else f"slide:{row.slide}"


def hash_unit(name: str, seed: int = 0) -> float:
    """A number in [0, 1) that depends on `name` and `seed` alone."""
    word = hashlib.sha256(f"eosin-split:{seed}:{name}".encode()).digest()[:8]
    return int.from_bytes(word, "big") / 2**64


def held_out(row: SlideRow, fraction: float, seed: int = 0) -> bool:
    """Whether the row's patient falls in the held-out `fraction`, by its hash alone.

    Adding or removing other slides moves no patient. In a small collection one side may be empty:
    `split_patients` mends that.
    """
    return hash_unit(patient_of(row), seed) < fraction


def split_patients(rows: Iterable[SlideRow], fraction: float, seed: int = 0) -> frozenset[str]:
    """The held-out patients (`patient_of`) among `rows`: those `held_out` names, and never all or none.

    Patients that share a slide, under whatever names it lies there, count as one, the first by name.
    Where none falls in the fraction, the patient with the smallest hash is held out; where all do, the
    one with the largest is kept. With one patient, or a fraction of 0, nothing is held out: the caller
    says so.
    """
    groups = linked_patients(rows)
    names = sorted(set(groups.values()), key=lambda name: (hash_unit(name, seed), name))
    if fraction <= 0 or len(names) < 2:
        return frozenset()
    num_held = sum(hash_unit(name, seed) < fraction for name in names)
    held = set(names[: min(max(num_held, 1), len(names) - 1)])
    return frozenset(patient for patient, name in groups.items() if name in held)


def linked_patients(rows: Iterable[SlideRow]) -> dict[str, str]:
    """Every patient (`patient_of`) with the first by name of those it is linked to by equal slides."""
    parents: dict[str, str] = {}
    first_with: dict[str, str] = {}
    for row in rows:
        patient = patient_of(row)
        parents.setdefault(patient, patient)
        if row.content:
            _link(parents, patient, first_with.setdefault(row.content, patient))
    return {patient: _root(parents, patient) for patient in parents}


def copies(rows: Iterable[SlideRow]) -> list[tuple[str, ...]]:
    """Slides that show the same under several names, each group sorted."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        if row.content:
            groups.setdefault(row.content, []).append(row.slide)
    return sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1)


def _root(parents: dict[str, str], name: str) -> str:
    while parents[name] != name:
        parents[name] = parents[parents[name]]
        name = parents[name]
    return name


def _link(parents: dict[str, str], one: str, other: str) -> None:
    """Join two groups under the name that comes first, so that the order of rows cannot matter."""
    first, second = sorted((_root(parents, one), _root(parents, other)))
    parents[second] = first
