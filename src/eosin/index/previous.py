"""Rows of the newest snapshot that need not be made again."""

from __future__ import annotations

from collections.abc import Sequence

from eosin.config.index import IndexConfig
from eosin.index.latest import load_manifest, read_latest
from eosin.index.listing import Unit
from eosin.index.plan import ScanPlan
from eosin.index.read_slide import INDEXER_VERSION, reuse_digest, slide_digest, with_override
from eosin.index.rows import FLEETING, Rows, SlideRow, decode_rows
from eosin.index.tissue_model import model_digest
from eosin.layout import IndexLayout
from eosin.storage import NotFound, ObjectInfo, Store


class PreviousRows:
    """The newest snapshot's rows, by the objects they were made of."""

    def __init__(self, rows: Rows | Sequence[SlideRow]) -> None:
        self._by_object = {each.key: row for row in rows for each in row.header.objects}

    def reusable(self, plan: ScanPlan, config: IndexConfig, unit: Unit) -> list[SlideRow] | None:
        """The unit's rows with the overrides joined anew; None where any of it must be read again."""
        rows = {row.slide: row for each in unit.objects if (row := self._by_object.get(each.key))}
        covered = {(each.key, each.etag) for row in rows.values() for each in row.header.objects}
        if covered != {(each.key, each.etag) for each in unit.objects}:
            return None
        if not all(_current(plan, config, row) for row in rows.values()):
            return None
        return [with_override(row, plan.override(row.header.objects)) for row in rows.values()]

    def groups(self, unit: Unit) -> list[tuple[ObjectInfo, ...]] | None:
        """Which of the unit's objects made up a slide; None where any is new, changed or to be read again."""
        slides: dict[str, list[ObjectInfo]] = {}
        for each in unit.objects:
            row = self._by_object.get(each.key)
            if row is None or row.read_status in FLEETING or not _holds(row, each):
                return None
            slides.setdefault(row.slide, []).append(each)
        return [tuple(group) for group in slides.values()]


def _holds(row: SlideRow, info: ObjectInfo) -> bool:
    return any((each.key, each.etag) == (info.key, info.etag) for each in row.header.objects)


def load_previous(store: Store) -> PreviousRows:
    """Rows of the newest snapshot; none where there is no snapshot, or one of another indexer."""
    latest = read_latest(store)
    manifest = load_manifest(store, latest.snapshot_id) if latest else None
    if manifest is None or manifest.indexer_version != INDEXER_VERSION:
        return PreviousRows([])
    key = IndexLayout.snapshot_rows(manifest.snapshot_id)
    try:
        return PreviousRows(decode_rows(store.get(key), source=f"{store.uri}/{key}"))
    except NotFound:
        return PreviousRows([])


def _current(plan: ScanPlan, config: IndexConfig, row: SlideRow) -> bool:
    digest = slide_digest(plan.slides.uri, row.header.objects)
    model = model_digest(plan.tissue_model)
    wanted = reuse_digest(digest, config, plan.override(row.header.objects), model)
    return row.reuse_digest == wanted and row.read_status not in FLEETING
