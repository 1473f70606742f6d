"""Whether a dataset's patients were seen in pretraining."""

from __future__ import annotations

from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.evaluation.dataset import Dataset
from eosin.index.snapshot import open_snapshot
from eosin.patches.eligible import find_eligible
from eosin.runs import load_pin

_MAX_NAMED = 10


def leaked_patients(run_uri: str, config: RunConfig, dataset: Dataset) -> tuple[str, ...]:
    """Patients of `dataset` whose slides this run trains on, by name, sorted.

    Empty where the dataset or the index names no patients: then nothing can be said.
    """
    patients = {sample.patient for sample in dataset.samples} - {""}
    if not patients:
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
    return tuple(sorted(patients & {snapshot.rows[int(number)].patient for number in trained}))


def leakage_note(patients: tuple[str, ...]) -> str:
    """What the record and the report say of it."""
    named = ", ".join(patients[:_MAX_NAMED]) + (" …" if len(patients) > _MAX_NAMED else "")
    return (
        f"{len(patients)} patient(s) of this dataset are among the pretraining slides, "
        f"so its figures may flatter: {named}"
    )
