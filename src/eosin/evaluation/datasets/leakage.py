"""Leakage: patients of a dataset who were seen in pretraining."""

from __future__ import annotations

from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.datasets.patients import tcga_patient
from eosin.index.snapshot import open_snapshot
from eosin.patches.sampling.eligible import find_eligible
from eosin.runs import load_pin, load_run

_MAX_NAMED = 10


def leaked_patients(run_uri: str, dataset: Dataset) -> tuple[str, ...]:
    """Patients of `dataset` whose slides the run at `run_uri` trains on, by name, sorted.

    A TCGA file name says whose it is where no patient is given. Empty where the dataset or the index
    names no patients, or there is no such run: then nothing can be said.
    """
    patients = {sample.patient or tcga_patient(sample.source) for sample in dataset.samples} - {""}
    if not patients:
        return ()
    try:
        config = load_run(run_uri)
    except UserError:  # a teacher that was copied away from its run
        return ()
    try:
        pin = load_pin(run_uri)
        snapshot = open_snapshot(pin.index_uri, pin.snapshot_id)
        try:
            trained = find_eligible(snapshot, config.patches, "train").rows
        except UserError:  # nothing could be held out, so training takes every slide
            trained = find_eligible(snapshot, config.patches, "all").rows
    except UserError:  # no index, or no slide in it that serves: nothing was trained on
        return ()
    rows = (snapshot.rows[int(number)] for number in trained)
    return tuple(sorted(patients & {row.patient or tcga_patient(row.slide) for row in rows}))


def leakage_note(patients: tuple[str, ...]) -> str:
    """What the record and the report say of it."""
    named = ", ".join(patients[:_MAX_NAMED]) + (" …" if len(patients) > _MAX_NAMED else "")
    return (
        f"{len(patients)} patient(s) of this dataset are among the pretraining slides, "
        f"so its figures may flatter: {named}"
    )
