"""DICOM files of one folder, by the series they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from eosin.index.listing import Unit
from eosin.index.plan import ScanPlan
from eosin.index.previous import PreviousRows
from eosin.layout import IndexLayout
from eosin.records import load_record
from eosin.records.base import Record
from eosin.slides.dicom import read_series_uid
from eosin.slides.errors import SlideError
from eosin.slides.header import open_range
from eosin.slides.model import SlideObject
from eosin.storage import AccessDenied, NotFound, ObjectChanged, ObjectInfo, Store

_LARGE_FOLDER = 32
"""Files from which on a folder is taken for many slides: a series is seldom more than a dozen."""


class ScanSeries(Record):
    """`series.json` of a scan: the slides in each large folder, as the keys that make them up."""

    folders: dict[str, tuple[tuple[str, ...], ...]]
    """Files of each series, by folder."""


def divided(plan: ScanPlan, previous: PreviousRows, num_threads: int) -> list[Unit]:
    """The plan's units, large folders of DICOM files by series, in key order.

    A bucket may keep thousands of series in one flat folder, which one shard would get whole. Only the
    files' headers tell the series, so the first shard reads one block of each and publishes what it
    found for the others; files whose slide a former snapshot holds are not read.
    """
    large = [unit for unit in plan.units if unit.kind == "dicom-folder" and len(unit.objects) > _LARGE_FOLDER]
    if not large:
        return list(plan.units)
    found = _series_of(plan, large, previous, num_threads)
    units = [unit for unit in plan.units if unit.key not in found.folders]
    for folder in large:
        known = {each.key: each for each in folder.objects}
        for keys in found.folders[folder.key]:
            units.append(Unit(min(keys), "series", tuple(known[key] for key in sorted(keys))))
    return sorted(units, key=lambda unit: unit.objects[0].key)


def _series_of(
    plan: ScanPlan, folders: Sequence[Unit], previous: PreviousRows, num_threads: int
) -> ScanSeries:
    key = IndexLayout.scan_series(plan.scan_id)
    published = load_record(ScanSeries, plan.index, key)
    if published is not None:
        return published
    grouped = {}
    for unit in folders:
        groups = previous.groups(unit) or split_series(plan.slides, unit.objects, num_threads)
        grouped[unit.key] = tuple(sorted(tuple(sorted(each.key for each in group)) for group in groups))
    found = ScanSeries(folders=grouped)
    plan.index.put(key, found.to_json())
    return found


def split_series(
    store: Store, objects: Sequence[ObjectInfo], num_threads: int = 1
) -> list[tuple[ObjectInfo, ...]]:
    """The objects of each slide: those of one series together, each unreadable file by itself."""
    if len(objects) == 1:
        return [tuple(objects)]
    groups: dict[str, list[ObjectInfo]] = {}
    with ThreadPoolExecutor(num_threads, "series") as pool:
        names = list(pool.map(lambda each: _series(store, each), objects))
    for each, name in zip(objects, names, strict=True):
        groups.setdefault(name or f"key:{each.key}", []).append(each)
    return [tuple(group) for group in groups.values()]


def _series(store: Store, info: ObjectInfo) -> str:
    """The series an object belongs to; empty where its header does not say, or may not be read."""
    if info.size_bytes == 0:
        return ""
    stored = SlideObject(info.key, info.etag, info.size_bytes)
    try:
        return read_series_uid(open_range(store, stored), stored)
    except (SlideError, ObjectChanged, NotFound, AccessDenied):
        return ""
