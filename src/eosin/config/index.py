"""Configuration of slides and of their index."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from eosin.config.base import Section


class SlidesConfig(Section):
    """Which slides, and what is known of them beside their headers."""

    uri: str = ""
    """Folder of slides: s3://bucket/prefix, file:///path or a path."""
    overrides: str | None = None
    """CSV (any URI) keyed by `slide`: mpp, patient, cohort, labels, exclude; other columns are kept."""
    include: tuple[str, ...] = ()
    """Glob patterns on the object key; empty means every object that could be a slide."""


class TissueConfig(Section):
    """How the tissue of a slide is found, on a level of about `mpp` µm a pixel."""

    method: Literal["otsu", "saturation"] = "otsu"
    """otsu: Otsu's threshold on saturation and optical density; saturation: a fixed HSV saturation > 20."""
    onnx: str = ""
    """URI of an ONNX model that finds the tissue in place of `method` (needs `eosin[onnx]`). It takes float32
    [N, 3, H, W], RGB from 0 to 1 at `mpp`, and gives the probability of tissue, [N, 1, H, W] or [N, H, W]."""
    onnx_threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability from which on a pixel is tissue."""
    least_detail: float = Field(default=0.3, ge=0, lt=1)
    """Tissue whose tiles hold less than this share of the detail the slide has elsewhere is out of focus and
    left out (JPEG and JPEG 2000 slides of 0.6 µm a pixel or finer). 0: nothing is."""
    mpp: float = Field(default=8.0, gt=0)
    """Resolution of the mask, µm a pixel."""
    min_area_um2: float = Field(default=10_000.0, ge=0)
    """Smaller islands are dropped and smaller holes filled."""


class IndexConfig(Section):
    """Where the index lies, and how slides are scanned into it."""

    uri: str = ""
    """Where the index is published; empty: one a folder of slides, `indexes/NAME` beside the folder `runs`,
    or in the folder that holds the run."""
    allow_fewer_slides: bool = False
    """Make a snapshot the newest one though it has less than half of the usable slides of the one before."""
    num_shards: int = Field(default=2, ge=1)
    """Shards of a scan: processes or pods that scan slides side by side. The index is the same for any
    number."""
    slides_in_flight: int = Field(default=8, ge=1)
    """Slides that one shard scans at once, each in a thread."""
    max_mpp: float = Field(default=4.0, gt=0)
    """A slide whose finest level is coarser than this, in µm a pixel, is listed as too-coarse."""
    tissue: TissueConfig = TissueConfig()
    """How tissue is found."""
