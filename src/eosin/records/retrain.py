"""What a retraining set out from: settled when it is planned, whatever the registry says later."""

from __future__ import annotations

from eosin.records.base import Record


class RetrainBase(Record):
    """`retrain.json` of a run: the registry's current model when it was planned; `version` None: none yet."""

    registry: str
    """URI of the registry."""
    name: str
    """Of the model in it."""
    version: int | None = None
    """Number of the version; None: there was none yet."""
    run: str = ""
    """URI of the run that trained it."""
    teacher: str = ""
    """URI of the folder of its export; training begins with its weights."""
    index_uri: str = ""
    """The index it was trained on."""
    snapshot_id: str = ""
    """What it was trained on; slides beyond it are new."""
