"""The card beside an exported teacher's weights."""

from __future__ import annotations

from typing import Any

from eosin.records.base import Record


class TeacherCard(Record):
    """`model.json`: all that plain timm needs to build the model, and where it came from."""

    name: str
    """step-00000100, or random-init."""
    step: int | None
    """Training step; None: not trained here."""
    arch: str
    """Name of the architecture in timm."""
    arch_args: dict[str, Any]
    """Keyword arguments for `timm.create_model(arch, num_classes=0, **arch_args)`."""
    img_px: int
    """Side of the image the position embedding was made for."""
    num_features: int
    """Length of the features of an image."""
    mean: tuple[float, float, float]
    """Subtracted from red, green and blue (0 to 1) of an image."""
    std: tuple[float, float, float]
    """Red, green and blue are divided by it afterwards."""
    mpp: tuple[float, ...]
    """Magnifications it was trained at, µm a pixel; both ends, where it was a range."""
    weights_sha256: str
    """Of model.safetensors."""
    config_digest: str = ""
    """Of what decides the training in the run's config.yaml."""
    snapshot_id: str = ""
    """The snapshot of the index that it was trained on."""
    eosin_version: str = ""
    """Of the eosin that exported it."""
