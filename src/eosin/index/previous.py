"""Reuse of rows of the newest snapshot that need not be made again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from eosin.config.index import IndexConfig
from eosin.errors import PermanentError
from eosin.index.columns import MappedRows
from eosin.index.listing import Unit
from eosin.index.plan import ScanPlan
from eosin.index.read_slide import INDEXER_VERSION, reuse_digest, slide_digest, with_override
from eosin.index.rows import FLEETING, SlideRow
from eosin.index.snapshot import load_manifest, load_snapshot_rows, read_latest
from eosin.index.sources import origin_of
from eosin.index.tissue_model import model_digest
from eosin.storage import NotFound, ObjectInfo, Store


class PreviousRows:
    """The newest snapshot's rows, by the objects they were made of; each is made when it is asked for."""

    def __init__(self, rows: MappedRows | None) -> None:
        self._rows = rows
        self._by_object: dict[str, int] = dict(rows.objects()) if rows is not None else {}

    def reusable(self, plan: ScanPlan, config: IndexConfig, unit: Unit) -> list[SlideRow] | None:
        """The unit's rows with the overrides joined anew; None where any of it must be read again."""
        rows = self._rows_among(each.key for each in unit.objects)
        covered = {(each.key, each.etag) for row in rows for each in row.header.objects}
        if covered != {(each.key, each.etag) for each in unit.objects}:
            return None
        if not all(_current(plan, config, row) for row in rows):
            return None
        return [
            replace(
                with_override(row, plan.override(row.header.objects)), **origin_of(plan.slides, row.slide)
            )
            for row in rows
        ]

    def groups(self, objects: Mapping[str, ObjectInfo]) -> list[tuple[str, ...]]:
        """Keys of those of `objects` that made up a slide and have not changed since, by slide.

        A series may have grown since: where any object of the snapshot's slides is new, changed or to be read
        again, none is taken for known.
        """
        groups: list[tuple[str, ...]] = []
        for row in self._rows_among(objects):
            stored = row.header.objects
            same = all(each.key in objects and objects[each.key].etag == each.etag for each in stored)
            if not same or row.read_status in FLEETING:
                return []
            groups.append(tuple(each.key for each in stored))
        return groups if sum(map(len, groups)) == len(objects) else []

    def _rows_among(self, objects: Iterable[str]) -> list[SlideRow]:
        """Rows that any of the objects was part of."""
        if self._rows is None:
            return []
        found = {self._by_object[key]: None for key in objects if key in self._by_object}
        return [self._rows.alone(i) for i in found]


def load_previous(store: Store) -> PreviousRows:
    """Rows of the newest snapshot; none where there is no snapshot, or one of another indexer."""
    latest = read_latest(store)
    manifest = load_manifest(store, latest.snapshot_id) if latest else None
    if manifest is None or manifest.indexer_version != INDEXER_VERSION:
        return PreviousRows(None)
    try:
        return PreviousRows(load_snapshot_rows(store, manifest))
    except (NotFound, PermanentError):  # what cannot be read anew is made anew
        return PreviousRows(None)


def _current(plan: ScanPlan, config: IndexConfig, row: SlideRow) -> bool:
    digest = slide_digest(plan.slides.uri, row.header.objects)
    model = model_digest(plan.tissue_model)
    wanted = reuse_digest(digest, config, plan.override(row.header.objects), model)
    return row.reuse_digest == wanted and row.read_status not in FLEETING
