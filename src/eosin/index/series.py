"""Sorting of objects by their content: DICOM instances into the slides they make up, wherever they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from eosin.index.listing import Unit, claims_dicom
from eosin.index.plan import ScanPlan
from eosin.index.previous import PreviousRows
from eosin.layout import IndexLayout
from eosin.records.base import Record, load_record, publish_once
from eosin.slides.dicom import read_series_uid
from eosin.slides.errors import SlideError
from eosin.slides.header import begins_as_slide, is_dicom, open_range
from eosin.slides.model import SlideObject
from eosin.storage import AccessDenied, NotFound, ObjectChanged, ObjectInfo, Store

_HEAD_BYTES = 132
# What an object is: the series and pyramid it belongs to; a slide by itself; or no slide.
_Instance = tuple[str, str]
_ALONE, _NO_SLIDE = ("", ""), None


class ScanSeries(Record):
    """`series.json` of a scan: what the objects are whose names do not tell."""

    slides: tuple[tuple[str, ...], ...]
    """Keys of the objects of each slide, sorted."""
    num_not_slides: int
    """Objects that are no slides: counted, not listed."""


def divided(plan: ScanPlan, previous: PreviousRows, num_threads: int) -> list[Unit]:
    """The plan's units, unsorted ones taken apart into slides, in key order.

    Only the objects' headers tell which series they belong to, so the first shard reads one block of each and
    publishes what it found for the others; objects whose slide a former snapshot holds are not read.
    """
    unsorted = {each.key: each for unit in plan.units if unit.kind == "unsorted" for each in unit.objects}
    if not unsorted:
        return list(plan.units)
    found = load_series(plan) or _sort(plan, unsorted, previous, num_threads)
    units = [unit for unit in plan.units if unit.kind == "slide"]
    units += [Unit(keys[0], "slide", tuple(unsorted[key] for key in keys)) for keys in found.slides]
    return sorted(units, key=lambda unit: unit.objects[0].key)


def load_series(plan: ScanPlan) -> ScanSeries | None:
    """What a shard of the scan has found out already."""
    return load_record(ScanSeries, plan.index, IndexLayout.scan_series(plan.scan_id))


def _sort(
    plan: ScanPlan, objects: Mapping[str, ObjectInfo], previous: PreviousRows, num_threads: int
) -> ScanSeries:
    known = previous.groups(objects)
    told = {key for group in known for key in group}
    groups, num_not_slides = split_series(
        plan.slides, [each for each in objects.values() if each.key not in told], num_threads
    )
    groups += known
    found = ScanSeries(slides=tuple(sorted(tuple(sorted(group)) for group in groups)),
                       num_not_slides=num_not_slides)  # fmt: skip
    # Of shards that sort at once one is right for all: an object may change between their readings.
    return publish_once(plan.index, IndexLayout.scan_series(plan.scan_id), found)


def split_series(
    store: Store, objects: Sequence[ObjectInfo], num_threads: int
) -> tuple[list[tuple[str, ...]], int]:
    """Keys of the objects of each slide, and how many objects are no slide.

    Instances of one series and pyramid are one slide, those that name no pyramid (labels) with the first of
    their series; each other slide is an object by itself.
    """
    with ThreadPoolExecutor(num_threads, "series") as pool:
        kinds = dict(zip([each.key for each in objects], pool.map(lambda each: _kind(store, each), objects),
                         strict=True))  # fmt: skip
    pyramids: dict[str, list[str]] = {}
    for kind in kinds.values():
        if kind and kind != _ALONE:
            pyramids.setdefault(kind[0], []).append(kind[1])
    groups: dict[tuple[str, str, str], list[str]] = {}
    for key, kind in kinds.items():
        if kind == _ALONE:
            groups[key, "", ""] = [key]
        elif kind is not _NO_SLIDE:
            series, pyramid = kind
            named = sorted(filter(None, pyramids[series]))
            groups.setdefault(("", series, pyramid or (named[0] if named else "")), []).append(key)
    return [tuple(group) for group in groups.values()], sum(kind is _NO_SLIDE for kind in kinds.values())


def _kind(store: Store, info: ObjectInfo) -> _Instance | None:
    """What an object is; `_ALONE` too where it may not be read, so that its row can say so."""
    unclaimed = _ALONE if claims_dicom(info.key) else _NO_SLIDE
    if info.size_bytes == 0:
        return unclaimed
    stored = SlideObject(info.key, info.etag, info.size_bytes)
    try:
        file = open_range(store, stored)
        head = file.read(_HEAD_BYTES)
        if is_dicom(head):
            file.seek(0)
            series, pyramid = read_series_uid(file, stored)
            return (series, pyramid) if series else _ALONE
        return _ALONE if begins_as_slide(head) else unclaimed
    except (SlideError, ObjectChanged, NotFound, AccessDenied):
        return _ALONE
