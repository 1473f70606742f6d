"""The marker of an immutable index snapshot, and the pin that a run keeps of it."""

from __future__ import annotations

from eosin.records.base import Record


class SnapshotManifest(Record):
    """`COMPLETE.json` of a snapshot, published last."""

    snapshot_id: str
    """SHA-256 (hex, 16 digits) of the sorted rows: the same whatever the sharding and order."""
    rows_sha256: str
    slides_uri: str
    indexer_version: int
    num_slides: int
    num_ok: int
    tissue_mm2: float
    reasons: dict[str, int] = {}
    """How many slides were left out, by status."""
    eosin_version: str = ""


class IndexPin(Record):
    """`index.json` of a run: the snapshot it reads, for good."""

    index_uri: str
    snapshot_id: str


class TrainingDone(Record):
    """`training.json` of a run: training ended, these teachers are exported."""

    num_steps: int
    models: tuple[str, ...]
    """Names of the exported teachers, by step."""
    snapshot_id: str
    config_digest: str
    wall_s: float = 0.0
    final_loss: float | None = None
