"""Which slides are kept from training: by patient, by a stable hash, whatever else is in the snapshot."""

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

    Where none falls in the fraction, the patient with the smallest hash is held out; where all do, the
    one with the largest is kept. With one patient, or a fraction of 0, nothing is held out: the caller
    says so.
    """
    patients = sorted({patient_of(row) for row in rows}, key=lambda name: (hash_unit(name, seed), name))
    if fraction <= 0 or len(patients) < 2:
        return frozenset()
    num_held = sum(hash_unit(name, seed) < fraction for name in patients)
    return frozenset(patients[: min(max(num_held, 1), len(patients) - 1)])
