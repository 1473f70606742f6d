"""Configuration of slides and of their index."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from eosin.config.base import NAME_PATTERN, Section
from eosin.words import repeated

_KINDS = ("uri", "manifest", "idc", "gdc")


class IdcConfig(Section):
    """Whole-slide series of NCI Imaging Data Commons, by the index in the package idc-index-data."""

    collections: tuple[str, ...] = ()
    """Names of collections (tcga_brca), or patterns (tcga_*); empty: all that hold whole-slide images."""
    where: dict[str, str | tuple[str, ...]] = {}
    """Columns of the index (license_short_name, Manufacturer, …), each with a pattern or several."""
    version: str = ""
    """Of idc-index-data; empty: the one that is installed, which is then written here."""


class SourceConfig(Section):
    """One source of slides, with its own access; exactly one of uri, manifest, idc and gdc."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = ""
    """Begins the key of each of its slides; empty: made of what it is."""
    uri: str = ""
    """Folder of slides: s3://bucket/prefix, file:///path or a path."""
    manifest: str = ""
    """CSV or Parquet (any URI) of slides' URIs in the column `slide`; the others are as in `overrides`."""
    idc: IdcConfig | None = None
    """Series of NCI Imaging Data Commons."""
    gdc: str = ""
    """Manifest (TSV, any URI) of the Genomic Data Commons: objects ID/FILENAME in `bucket`."""
    bucket: str = ""
    """Of a gdc source: s3://bucket or s3://bucket/prefix."""
    endpoint_url: str = ""
    """Of its store; empty: what the environment says, and for idc https://s3.amazonaws.com."""
    region: str = ""
    """Of its store; empty: what the environment says."""
    profile: str = ""
    """Of its credentials, as in AWS's shared files; empty: what the environment says."""
    anonymous: bool | None = None
    """Read without credentials; empty: as the environment says, for idc true unless a profile is named."""

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if data.get("idc") is not None:
            data["endpoint_url"] = data.get("endpoint_url") or "https://s3.amazonaws.com"
            data["region"] = data.get("region") or "us-east-1"
            if data.get("anonymous") is None:
                data["anonymous"] = not data.get("profile")
        data["name"] = data.get("name") or _name(data)
        return data

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in _KINDS if getattr(self, kind)]
        if self.idc is not None and "idc" not in given:
            given.append("idc")
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"a source is exactly one of {', '.join(_KINDS)}, not {found}")
        if bool(self.gdc) != bool(self.bucket):
            raise ValueError("gdc names a manifest, and bucket where its objects lie: give both")
        if self.anonymous and self.profile:
            raise ValueError(f"anonymous is true, and profile {self.profile} names credentials: give one")
        if self.endpoint_url and not self.endpoint_url.startswith(("http://", "https://")):
            raise ValueError(
                f"endpoint_url {self.endpoint_url} is no URL: write https://HOST or http://HOST:PORT"
            )
        return self

    @property
    def kind(self) -> str:
        """uri, manifest, idc or gdc."""
        return "idc" if self.idc is not None else next(kind for kind in _KINDS if getattr(self, kind))

    @property
    def credentials(self) -> str:
        """What its objects are read with, never a secret: anonymous, a profile's name, environment."""
        return "anonymous" if self.anonymous else self.profile or "environment"

    def __str__(self) -> str:
        """What it is, for a person."""
        if self.idc is None:
            return str(self.gdc or self.manifest or self.uri)
        return f"IDC {self.idc.version} {', '.join(self.idc.collections) or 'all'}".replace("  ", " ")


def _name(data: dict[str, Any]) -> str:
    """Of a source that has none: idc, gdc, or the last part of its URI."""
    if data.get("idc") is not None or data.get("gdc"):
        return "idc" if data.get("idc") is not None else "gdc"
    uri = str(data.get("uri") or data.get("manifest") or "").rstrip("/")
    last = PurePosixPath(uri).stem if data.get("manifest") else PurePosixPath(uri).name
    return re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")[:63] or "slides"


class SlidesConfig(Section):
    """Which slides, and what is known of them beside their headers. A list is taken for `sources`."""

    uri: str = ""
    """Folder of slides: s3://bucket/prefix, file:///path or a path."""
    sources: tuple[SourceConfig, ...] = ()
    """In place of `uri`: folders, manifests and open archives, each with its own endpoint and credentials."""
    overrides: str | None = None
    """CSV (any URI) keyed by `slide`: mpp, patient, cohort, labels, exclude; other columns are kept."""
    contours: str | None = None
    """Folder (any URI) of `SLIDE.geojson`, polygons of tissue in level-0 pixels, as `eosin index contours`
    writes and QuPath exports them: the mask of a slide with a file is drawn from it."""
    include: tuple[str, ...] = ()
    """Glob patterns on the object key; empty means every object that could be a slide."""

    @model_validator(mode="before")
    @classmethod
    def _list_of_sources(cls, data: Any) -> Any:
        return {"sources": data} if isinstance(data, list | tuple) else data

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.uri and self.sources:
            raise ValueError("uri is one folder, and sources are several: give one of both")
        if twice := repeated([source.name for source in self.sources]):
            raise ValueError(f"two sources are called {twice}: give each a name")
        return self

    def __str__(self) -> str:
        """The folder, or the sources, for a person; empty where none is named."""
        return self.uri or ", ".join(map(str, self.sources))


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
    slides_in_flight: int = Field(default=16, ge=1)
    """Slides that one shard scans at once, each in a thread; of 8 at once the picture is in memory, or a copy
    on the disk."""
    max_mpp: float = Field(default=4.0, gt=0)
    """A slide whose finest level is coarser than this, in µm a pixel, is listed as too-coarse."""
    tissue: TissueConfig = TissueConfig()
    """How tissue is found."""
