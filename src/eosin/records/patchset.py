"""Records of a patch set: its specification, and the manifest of its decoded shards."""

from typing import Any

from eosin.records.base import Record, RecordPart
from eosin.records.index import SlideLeftOut


class PatchSetShard(RecordPart):
    """One shard of a set."""

    key: str
    """Relative to the manifest's folder."""
    num_patches: int
    """Rows of the shard."""
    sha256: str
    """Of the shard's bytes."""


class RejectedPatch(RecordPart):
    """A position that gave no patch."""

    slide: str
    """Key of the slide."""
    x_px: int
    """Left edge in the level-0 frame, pixels."""
    y_px: int
    """Top edge in the level-0 frame, pixels."""
    mpp: float
    """Magnification that was asked for, µm a pixel."""
    reason: str
    """Why its pixels could not be had."""


class PatchSetSpec(Record):
    """`set.json`: what a set is made of, so that all who decode parts of it make the same one."""

    snapshot_id: str
    """The snapshot of the index that the slides are of."""
    spec: dict[str, Any]
    """A section of `patches.sets`, resolved."""


class PatchSetManifest(Record):
    """`manifest.json`. `x_px`, `y_px` in the shards are the top-left corner in the level-0 frame."""

    name: str
    """Of the set in its run."""
    digest: str
    """SHA-256 over the shards' digests, in order."""
    patch_px: int
    """Side of the square patches, px."""
    mpp: tuple[float, ...]
    """Magnifications of its patches, µm a pixel."""
    encoding: str
    """png or jpeg."""
    format: str = "parquet"
    """Of the shards: parquet or webdataset."""
    num_patches: int
    """Over all shards."""
    shards: tuple[PatchSetShard, ...]
    """In order."""
    snapshot_id: str = ""
    """The snapshot of the index that the slides are of; empty where there is none."""
    index_uri: str = ""
    """That index."""
    slides: tuple[str, ...] = ()
    """Slides that gave at least one patch."""
    left_out: tuple[SlideLeftOut, ...] = ()
    """Every other slide that was asked for, with the reason."""
    rejected: tuple[RejectedPatch, ...] = ()
    """Positions that could not be read."""
    notes: tuple[str, ...] = ()
    """What a reader must know: e.g. that no slide could be held out."""
    eosin_version: str = ""
    """Of the eosin that published it."""
