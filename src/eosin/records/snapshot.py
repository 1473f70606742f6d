"""The marker of an immutable index snapshot, and the pin that a run keeps of it."""

from __future__ import annotations

from eosin.records.base import Record


class SnapshotManifest(Record):
    """`COMPLETE.json` of a snapshot, published last."""

    snapshot_id: str
    """SHA-256 (hex, 16 digits) of the sorted rows: the same whatever the sharding and order."""
    rows_sha256: str
    """Of slides.parquet."""
    slides_uri: str
    """Folder of the slides."""
    indexer_version: int
    """Rises when the same slide would give another row."""
    num_slides: int
    """Rows: every slide, those that cannot be used too."""
    num_ok: int
    """Slides that can be used."""
    tissue_mm2: float
    """Area of tissue of the usable slides, mm²."""
    reasons: dict[str, int] = {}
    """How many slides were left out, by status."""
    eosin_version: str = ""
    """Of the eosin that published it."""


class IndexPin(Record):
    """`index.json` of a run: the snapshot it reads, for good."""

    index_uri: str
    """The index."""
    snapshot_id: str
    """Its snapshot."""


class TrainingDone(Record):
    """`training.json` of a run: training ended, these teachers are exported."""

    num_steps: int
    """Steps taken."""
    models: tuple[str, ...]
    """Names of the exported teachers, by step."""
    snapshot_id: str
    """The snapshot of the index that it was trained on."""
    config_digest: str
    """Of what decides the training in config.yaml."""
    wall_s: float = 0.0
    """From the start of the last world to the end, seconds."""
    final_loss: float | None = None
    """Loss of the last step."""
