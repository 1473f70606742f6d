"""Configuration of slides: their folder, and what a person knows of them that their headers do not say."""

from __future__ import annotations

from eosin.config.base import Section


class SlidesConfig(Section):
    """Which slides, and what is known of them beside their headers."""

    uri: str = ""
    """Folder of slides: s3://bucket/prefix, file:///path or a path."""
    overrides: str | None = None
    """CSV (any URI) keyed by `slide`: mpp, patient, cohort, labels, exclude; other columns are kept."""
    include: tuple[str, ...] = ()
    """Glob patterns on the object key; empty means every object that could be a slide."""
