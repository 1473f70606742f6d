"""DICOM files of one folder, by the series they belong to."""

from __future__ import annotations

from collections.abc import Sequence

from eosin.slides.dicom import read_series_uid
from eosin.slides.errors import SlideError
from eosin.slides.header import open_range
from eosin.slides.model import SlideObject
from eosin.storage import NotFound, ObjectChanged, ObjectInfo, Store


def split_series(store: Store, objects: Sequence[ObjectInfo]) -> list[tuple[ObjectInfo, ...]]:
    """The objects of each slide: those of one series together, each unreadable file by itself."""
    if len(objects) == 1:
        return [tuple(objects)]
    groups: dict[str, list[ObjectInfo]] = {}
    for each in objects:
        groups.setdefault(_series(store, each) or f"key:{each.key}", []).append(each)
    return [tuple(group) for group in groups.values()]


def _series(store: Store, info: ObjectInfo) -> str:
    """The series an object belongs to; empty where its header does not say."""
    if info.size_bytes == 0:
        return ""
    stored = SlideObject(info.key, info.etag, info.size_bytes)
    try:
        return read_series_uid(open_range(store, stored), stored)
    except (SlideError, ObjectChanged, NotFound):
        return ""
