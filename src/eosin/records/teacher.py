"""The card beside an exported teacher's weights."""

from __future__ import annotations

from typing import Any

from eosin.records.base import Record


class TeacherCard(Record):
    """`model.json`: all that plain timm needs to build the model, and where it came from."""

    name: str
    step: int | None
    arch: str
    arch_args: dict[str, Any]
    """Keyword arguments for `timm.create_model(arch, num_classes=0, **arch_args)`."""
    img_px: int
    """Side of the image the position embedding was made for."""
    num_features: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mpp: tuple[float, ...]
    weights_sha256: str
    config_digest: str = ""
    snapshot_id: str = ""
    eosin_version: str = ""
