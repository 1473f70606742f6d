"""The held-out split: by patient, by a stable hash, whatever else is in the snapshot."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eosin.index.columns import MappedRows
from eosin.index.rows import SlideRow


class SlideKey(NamedTuple):
    """What the held-out split is made by."""

    slide: str
    patient: str
    content: str


def patient_of(row: SlideRow | SlideKey) -> str:
    """What must not be torn apart by a split: the patient, or the slide where none is known."""
    return f"patient:{row.patient}" if row.patient else f"slide:{row.slide}"


def hash_unit(name: str, seed: int = 0) -> float:
    """A number in [0, 1) that depends on `name` and `seed` alone."""
    word = hashlib.sha256(f"eosin-split:{seed}:{name}".encode()).digest()[:8]
    return int.from_bytes(word, "big") / 2**64


def held_patients(groups: Mapping[str, str], fraction: float, seed: int = 0) -> frozenset[str]:
    """The held-out ones of `linked_patients`: those whose hash is below the fraction, and never all or none.

    Patients that share a slide, under whatever names it lies there, count as one, the first by name.
    Where none falls in the fraction, the patient with the smallest hash is held out; where all do, the
    one with the largest is kept. With one patient, or a fraction of 0, nothing is held out: the caller
    says so.
    """
    places = {name: hash_unit(name, seed) for name in groups.values()}
    if fraction <= 0 or len(places) < 2:
        return frozenset()
    held = {name for name, place in places.items() if place < fraction}
    if not held:
        held = {min(places, key=lambda name: (places[name], name))}
    elif len(held) == len(places):
        held.remove(max(places, key=lambda name: (places[name], name)))
    return frozenset(patient for patient, name in groups.items() if name in held)


def held_out_rows(rows: MappedRows, among: npt.NDArray[np.int64], fraction: float) -> npt.NDArray[np.bool_]:
    """Which of `among` (rows of a snapshot) belong to the patients that `held_patients` holds out of them.

    Only a row of each patient is looked at one by one, and those that have copies.
    """
    contents, patients = (_codes(rows.arrow(name, among)) for name in ("content", "patient"))
    alone = np.asarray(pc.equal(pc.binary_length(rows.arrow("patient", among)), 0))
    decisive = alone.copy()
    decisive[np.unique(patients, return_index=True)[1]] = True
    copied = among[np.bincount(contents)[contents] > 1]
    columns = (rows.texts(name, copied) for name in SlideKey._fields)
    linked = linked_patients(SlideKey(*each) for each in zip(*columns, strict=True))
    columns = (rows.texts(name, among[decisive]) for name in ("slide", "patient"))
    owners = [patient_of(SlideKey(slide, patient, "")) for slide, patient in zip(*columns, strict=True)]
    held = held_patients({owner: linked.get(owner, owner) for owner in owners}, fraction)
    found = np.zeros(len(among), bool)
    found[decisive] = [owner in held for owner in owners]
    # Slides of one patient share its place; those of nobody have places of their own.
    of_patient = np.zeros(int(patients.max(initial=0)) + 1, bool)
    of_patient[patients[decisive]] = found[decisive]
    return np.where(alone, found, of_patient[patients])


def _codes(values: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """A number for each distinct value."""
    encoded = values.combine_chunks().dictionary_encode()
    return np.asarray(encoded.indices).astype(np.int64)


def linked_patients(rows: Iterable[SlideRow | SlideKey]) -> dict[str, str]:
    """Every patient (`patient_of`) with the first by name of those it is linked to by equal slides."""
    parents: dict[str, str] = {}
    first_with: dict[str, str] = {}
    for row in rows:
        patient = patient_of(row)
        parents.setdefault(patient, patient)
        other = first_with.setdefault(row.content, patient) if row.content else patient
        if other != patient:
            _link(parents, patient, other)
    return {patient: _root(parents, patient) for patient in parents}


def copies(rows: MappedRows, among: npt.NDArray[np.int64]) -> list[tuple[str, ...]]:
    """Slides of `among` (rows of a snapshot) that show the same under several names, each group sorted."""
    among = among[rows.table["content"]["size"][among] > 0]
    contents = _codes(rows.arrow("content", among))
    copied = np.flatnonzero(np.bincount(contents)[contents] > 1)
    groups: dict[int, list[str]] = {}
    for content, slide in zip(contents[copied].tolist(), rows.texts("slide", among[copied]), strict=True):
        groups.setdefault(content, []).append(slide)
    return sorted(tuple(sorted(group)) for group in groups.values())


def _root(parents: dict[str, str], name: str) -> str:
    while parents[name] != name:
        parents[name] = parents[parents[name]]
        name = parents[name]
    return name


def _link(parents: dict[str, str], one: str, other: str) -> None:
    """Join two groups under the name that comes first, so that the order of rows cannot matter."""
    first, second = sorted((_root(parents, one), _root(parents, other)))
    parents[second] = first
