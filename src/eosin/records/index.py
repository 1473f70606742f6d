"""Records of an index: snapshot, listing of a scan, and features made from an index alone."""

from typing import Any

from eosin.records.base import Record


class SnapshotManifest(Record):
    """`COMPLETE.json` of a snapshot, published last."""

    snapshot_id: str
    """SHA-256 (hex, 16 digits) of the sorted rows: the same whatever the sharding and order."""
    rows_sha256: str
    """Of slides.parquet."""
    slides_uri: str
    """Folder of the slides, to which keys are relative; of several sources, what they are."""
    sources: tuple[dict[str, Any], ...] = ()
    """In place of a folder, as `slides.sources` has them: a slide's key begins with its source's name."""
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
    num_verified: int = 0
    """Slides, one of each vendor and layout, whose picture was held against another reader's."""
    num_not_slides: int = 0
    """Objects in the folder that are no slides: counted, not listed."""
    attribution: tuple[str, ...] = ()
    """Whose the slides are: collections with their numbers of usable slides, licences and DOIs."""
    eosin_version: str = ""
    """Of the eosin that published it."""


class ScanListing(Record):
    """`listing.json` of a scan, published last of what all its shards work from."""

    slides_uri: str
    """Folder that was listed."""
    num_objects: int
    """Rows of listing.parquet."""
    num_pictures: int
    """Objects that are pictures by name, and no slides."""
    has_overrides: bool
    """Whether overrides.csv is there: slides.overrides as it was then."""
    unknown_contours: tuple[str, ...] = ()
    """Files in slides.contours that name no slide, or several."""
    has_tissue_model: bool
    """Whether tissue.onnx is there: index.tissue.onnx as it was then."""


class FeaturesSpec(Record):
    """`features.json`: what the features of a folder are, pinned by the first worker."""

    model: str
    """As it was named: URI of a teacher, or timm:NAME."""
    model_digest: str
    """SHA-256 of all that decides its embeddings."""
    snapshot_id: str
    """The snapshot of the index."""
    index_uri: str
    """The index; empty where the patch set names none."""
    patches_uri: str = ""
    """The patch set that the patches are of; empty: they are read from the slides."""
    patches_digest: str = ""
    """Of that set."""
    mpp: float | None
    """Magnification of the patches, µm a pixel; null where a set's patches have several."""
    patch_px: int
    """Side of the patches in pixels at `mpp`; the model sees them at its own size."""
    overlap_px: int
    """Pixels that a patch shares with the next."""
    min_foreground: float | None
    """Smallest share of tissue in a patch; null where a set was drawn as its run's training draws."""
    slides: tuple[str, ...]
    """Patterns of the slides' keys."""
    format: str
    """hdf5, parquet or safetensors."""
    read_out: str = "last"
    """Which features of a patch, as `read_out` of a task."""


class SlideLeftOut(Record):
    """`left-out/NAME.json`: a slide that gives no features (in a patch set: no patch), and why."""

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


class ClustersManifest(Record):
    """`clusters.json`: a tree of clusters over the patches of features."""

    spec: FeaturesSpec
    """The features that were clustered."""
    num_clusters: tuple[int, ...]
    """Of each level, the finest first."""
    seed: int
    """Of the draws of k-means."""
    parents: tuple[tuple[int, ...], ...]
    """For each level but the coarsest, which cluster of the level above each of its clusters belongs to."""
    sizes: tuple[int, ...]
    """Patches of each of the finest clusters."""
    cells_sha256: str
    """Of cells.parquet."""
    eosin_version: str = ""
    """Of the eosin that published it."""
