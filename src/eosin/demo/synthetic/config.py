"""Configuration of synthetic slides: sizes, file form, tissue classes, and the seed that fixes every byte."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from eosin.errors import UserError

# Part of every fingerprint: raised when the same config and seed would give other bytes.
GENERATOR_VERSION = 5

SlideCompression = Literal["jpeg", "jpeg-rgb", "jpeg2000-ycbcr", "jpeg2000-rgb", "lzw", "deflate", "none"]
COMPRESSIONS: tuple[SlideCompression, ...] = (
    "jpeg", "jpeg-rgb", "jpeg2000-ycbcr", "jpeg2000-rgb", "lzw", "deflate", "none",
)  # fmt: skip
_MAX_PIXELS = 2**30


@dataclass(frozen=True)
class TissueClass:
    """The three things that tell one tissue from another; everything else varies as a nuisance."""

    name: str
    area_fraction: float
    """Share of the tissue that nuclei cover, before overlap."""
    diameter_um: float
    """Diameter of the disc with a nucleus's mean area."""
    aspect: float
    """Long axis over short axis."""


def _all_classes() -> tuple[TissueClass, ...]:
    return tuple(
        TissueClass(f"{density}-{size}-{shape}", area_fraction, diameter_um, aspect)
        for density, area_fraction in (("sparse", 0.10), ("dense", 0.30))
        for size, diameter_um in (("small", 4.8), ("large", 9.6))
        for shape, aspect in (("round", 1.1), ("elongated", 3.2))
    )


TISSUE_CLASSES: dict[str, TissueClass] = {tissue.name: tissue for tissue in _all_classes()}
CLASS_NAMES: tuple[str, ...] = tuple(TISSUE_CLASSES)


@dataclass(frozen=True)
class SyntheticConfig:
    """A synthetic data set. Equal configs give equal bytes (with the same library versions)."""

    num_slides: int = 8
    width_px: int = 4096
    """Level-0 size of a slide. A whole slide is held in memory while it is drawn (3 bytes a pixel)."""
    height_px: int = 4096
    mpp: float = 0.25
    """µm a pixel at level 0."""
    layout: Literal["aperio", "generic"] = "aperio"
    """aperio: pages, descriptions and associated images as an Aperio scanner writes them;
    generic: a plain pyramidal tiled TIFF with its resolution in the standard tags."""
    compression: SlideCompression = "jpeg"
    """jpeg: YCbCr 4:2:0; jpeg-rgb: RGB samples without a marker that says so; jpeg2000-ycbcr and
    jpeg2000-rgb: Aperio's 33003 and 33005, which OpenSlide reads in the aperio layout alone.
    OpenSlide's libtiff reads `none` only where a tile's bytes are a multiple of 1024: tile_px=256."""
    quality: int = 80
    """JPEG quality; JPEG 2000 is written at `quality // 2` dB."""
    tile_px: int = 240
    downsamples: tuple[int, ...] = (1, 4, 16)
    bigtiff: bool = False
    classes: tuple[str, ...] = CLASS_NAMES
    pen_marks: float = 0.0
    """Share of slides with a stroke of a felt pen."""
    blurred_areas: float = 0.0
    """Share of slides with an area out of focus."""
    slides_per_patient: int = 1
    labelled_patients: int = 12
    """Patients of the labelled patch set; none of them has a slide. Half train, a sixth val, a third test."""
    labelled_per_class: int = 8
    """Labelled patches of each class from each of these patients."""
    labelled_patch_px: int = 96
    labelled_mpp: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_labelled(self)
        unknown = [name for name in self.classes if name not in TISSUE_CLASSES]
        if unknown or not self.classes:
            raise UserError(f"unknown tissue class {unknown or '(none given)'}",
                            hint=f"choose among {', '.join(CLASS_NAMES)}")  # fmt: skip
        if self.compression not in COMPRESSIONS or self.layout not in ("aperio", "generic"):
            raise UserError(
                f"cannot write layout {self.layout!r} with compression {self.compression!r}",
                hint=f"compressions: {', '.join(COMPRESSIONS)}; layouts: aperio, generic",
            )

    @property
    def tissues(self) -> tuple[TissueClass, ...]:
        """The classes by name, in their order."""
        return tuple(TISSUE_CLASSES[name] for name in self.classes)


# What decides the pixels and bytes of one slide, and those of the labelled set.
_SLIDE_FIELDS = (
    "width_px", "height_px", "mpp", "layout", "compression", "quality", "tile_px", "downsamples", "bigtiff",
    "classes", "pen_marks", "blurred_areas",
)  # fmt: skip
_LABELLED_FIELDS = (
    "mpp", "quality", "classes", "labelled_patients", "labelled_per_class", "labelled_patch_px",
    "labelled_mpp", "seed",
)  # fmt: skip


def slide_fingerprint(seed: int, config: SyntheticConfig) -> str:
    """16 hex digits that change whenever the bytes of the slide would."""
    return _fingerprint({"seed": seed}, config, _SLIDE_FIELDS)


def labelled_fingerprint(config: SyntheticConfig) -> str:
    """16 hex digits that change whenever the labelled patch set would."""
    return _fingerprint({}, config, _LABELLED_FIELDS)


def derived_seed(seed: int, stream: str, index: int) -> int:
    """An independent 63-bit seed for the `index`-th member of a named stream."""
    digest = hashlib.sha256(f"{seed}/{stream}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _fingerprint(extra: dict[str, int], config: SyntheticConfig, names: tuple[str, ...]) -> str:
    values = asdict(config)
    chosen = {name: values[name] for name in names} | extra | {"generator": GENERATOR_VERSION}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


def _check_sizes(config: SyntheticConfig) -> None:
    smallest = max(64, 2 * max(config.downsamples, default=1))
    if min(config.width_px, config.height_px) < smallest:
        raise UserError(f"a slide of {config.width_px} × {config.height_px} px is too small for its pyramid",
                        hint=f"give each side at least {smallest} px, or fewer downsamples")  # fmt: skip
    if config.width_px * config.height_px > _MAX_PIXELS:
        raise UserError(f"a slide of {config.width_px} × {config.height_px} px would not fit in memory",
                        hint=f"keep to {_MAX_PIXELS} pixels in all")  # fmt: skip
    if config.num_slides < 0 or config.slides_per_patient < 1 or config.mpp <= 0:
        raise UserError("num_slides must be 0 or more, slides_per_patient 1 or more, mpp above 0")
    if not (0 <= config.pen_marks <= 1 and 0 <= config.blurred_areas <= 1):
        raise UserError("pen_marks and blurred_areas are shares of the slides, 0 to 1")
    if not 1 <= config.quality <= 100 or config.tile_px < 16 or config.tile_px % 16:
        raise UserError("quality must be 1 to 100 and tile_px a multiple of 16",
                        hint=f"got quality {config.quality}, tile_px {config.tile_px}")  # fmt: skip
    if config.downsamples[:1] != (1,) or list(config.downsamples) != sorted(set(config.downsamples)):
        raise UserError(f"downsamples must start at 1 and rise, not {config.downsamples}")


def _check_labelled(config: SyntheticConfig) -> None:
    if config.labelled_patients and config.labelled_patients < 3:
        raise UserError("a labelled set needs at least 3 patients: one each for train, val and test",
                        hint="labelled_patients=0 writes none")  # fmt: skip
    if config.labelled_patients < 0 or config.labelled_per_class < 1 or config.labelled_patch_px < 8:
        raise UserError("labelled_per_class must be at least 1 and labelled_patch_px at least 8")
    if config.labelled_mpp < config.mpp:
        raise UserError(f"labelled patches at {config.labelled_mpp} mpp are finer than the slides",
                        hint=f"slides have {config.mpp} mpp")  # fmt: skip


__all__ = [
    "CLASS_NAMES", "COMPRESSIONS", "GENERATOR_VERSION", "TISSUE_CLASSES", "SlideCompression",
    "SyntheticConfig", "TissueClass", "derived_seed", "labelled_fingerprint", "slide_fingerprint",
]  # fmt: skip
