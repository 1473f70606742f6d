"""What a study varies, and the run of each value."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from eosin.records.base import Record


class Variant(BaseModel):
    """One run of a study."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    """Of its folder, and of its point in the report."""
    value: Any
    """Of the key; null stands for no limit."""
    run: str
    """URI of the run."""
    untrained: str
    """The model that its training begins with: random-init, timm:NAME or a teacher's folder."""


class Study(Record):
    """`study.json`, beside the configuration that all variants share."""

    key: str
    """The configuration key that differs, `section.key`."""
    variants: tuple[Variant, ...]
    """In the order of their values."""
    heldout: str
    """URI of the patch set on which all of them are judged without labels."""
