"""Configuration of synthetic slides: sizes, tissue classes, and the seed that fixes every byte."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

# Part of every fingerprint: raised when the same config and seed would give other bytes.
GENERATOR_VERSION = 6


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


TISSUE_CLASSES: dict[str, TissueClass] = {
    (name := f"{density}-{size}-{shape}"): TissueClass(name, area_fraction, diameter_um, aspect)
    for density, area_fraction in (("sparse", 0.10), ("dense", 0.30))
    for size, diameter_um in (("small", 4.8), ("large", 9.6))
    for shape, aspect in (("round", 1.1), ("elongated", 3.2))
}
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
    quality: int = 80
    """Of JPEG."""
    tile_px: int = 240
    downsamples: tuple[int, ...] = (1, 4, 16)
    slides_per_patient: int = 1
    labelled_patients: int = 12
    """Patients of the labelled patch set; none of them has a slide. Half train, a sixth val, a third test."""
    labelled_per_class: int = 8
    """Labelled patches of each class from each of these patients."""
    labelled_patch_px: int = 96
    labelled_mpp: float = 0.5
    seed: int = 0


# What decides the pixels and bytes of one slide, and those of the labelled set.
_SLIDE_FIELDS = ("width_px", "height_px", "mpp", "quality", "tile_px", "downsamples")
_LABELLED_FIELDS = (
    "mpp", "quality", "labelled_patients", "labelled_per_class", "labelled_patch_px", "labelled_mpp", "seed",
)  # fmt: skip


def slide_fingerprint(seed: int, config: SyntheticConfig) -> str:
    """16 hex digits that change whenever the bytes of the slide would."""
    return _fingerprint(config, _SLIDE_FIELDS, seed)


def labelled_fingerprint(config: SyntheticConfig) -> str:
    """16 hex digits that change whenever the labelled patch set would."""
    return _fingerprint(config, _LABELLED_FIELDS)


def derived_seed(seed: int, stream: str, index: int) -> int:
    """An independent 63-bit seed for the `index`-th member of a named stream."""
    digest = hashlib.sha256(f"{seed}/{stream}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _fingerprint(config: SyntheticConfig, names: Sequence[str], *further: int) -> str:
    values = asdict(config)
    chosen = [GENERATOR_VERSION, *further, *(values[name] for name in names)]
    return hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:16]
