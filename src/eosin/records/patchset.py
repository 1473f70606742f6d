"""The manifest of an immutable set of decoded patches."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from eosin.records.base import Record


class PatchSetShard(BaseModel):
    model_config = ConfigDict(frozen=True)

    key: str
    """Relative to the manifest's folder."""
    num_patches: int
    sha256: str


class RejectedPatch(BaseModel):
    model_config = ConfigDict(frozen=True)

    slide: str
    x_px: int
    y_px: int
    mpp: float
    reason: str


class PatchSetSpec(Record):
    """`set.json`: what a set is made of, so that all who decode parts of it make the same one."""

    snapshot_id: str
    spec: dict[str, Any]
    """A section of `patches.sets`, resolved."""


class PatchSetManifest(Record):
    """`manifest.json`. `x_px`, `y_px` in the shards are the top-left corner in the level-0 frame."""

    name: str
    digest: str
    """SHA-256 over the shards' digests, in order."""
    patch_px: int
    mpp: tuple[float, ...]
    encoding: str
    format: str = "parquet"
    """Of the shards: parquet or webdataset."""
    num_patches: int
    shards: tuple[PatchSetShard, ...]
    snapshot_id: str = ""
    slides: tuple[str, ...] = ()
    """Slides that gave at least one patch."""
    rejected: tuple[RejectedPatch, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader must know: e.g. that no slide could be held out."""
    eosin_version: str = ""
