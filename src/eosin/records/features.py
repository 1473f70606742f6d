"""Records of features made from an index alone: what they are, and what became of each slide."""

from __future__ import annotations

from eosin.records.base import Record


class FeaturesSpec(Record):
    """`features.json`: what the features of a folder are, pinned by the first worker."""

    model: str
    """As it was named: URI of a teacher, or timm:NAME."""
    model_digest: str
    """SHA-256 of all that decides its embeddings."""
    snapshot_id: str
    """The snapshot of the index."""
    index_uri: str
    """The index."""
    mpp: float
    """Magnification of the patches, µm a pixel."""
    patch_px: int
    """Side of the patches in pixels at `mpp`; the model sees them at its own size."""
    overlap_px: int
    """Pixels that a patch shares with the next."""
    min_foreground: float
    """Smallest share of tissue in a patch."""
    slides: tuple[str, ...]
    """Patterns of the slides' keys."""
    format: str
    """hdf5, parquet or safetensors."""


class SlideLeftOut(Record):
    """`left-out/NAME.json`: a slide that gives no features, and why."""

    slide: str
    """Its key."""
    reason: str
    """What was met."""


class FeaturesManifest(Record):
    """`manifest.json` of a folder of features, published once every slide is done."""

    spec: FeaturesSpec
    """What the features are."""
    num_slides: int
    """Slides with features."""
    left_out: tuple[SlideLeftOut, ...]
    """Every slide of the snapshot that has none, with the reason."""
    eosin_version: str = ""
    """Of the eosin that published it."""
