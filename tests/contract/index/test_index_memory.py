"""What indexing holds in memory: a part of the slides, whatever their number."""

import gc
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

import eosin.index.merge as merge_module
import eosin.index.read_slide as read_slide_module
import eosin.index.rows as rows_module
import eosin.index.scan as scan_module
from eosin.index.merge import MergedParts
from eosin.index.overview import Overview
from eosin.index.publish import publish_snapshot
from eosin.index.rows import SlideRow, encode_rows
from eosin.index.scan import scan_shard
from eosin.storage import open_store
from tests.support.counting import CountingStore
from tests.support.indexing import LOG, bare_row, config_for, make_slides, statuses


class Alive:
    """How many rows there are at once, at most."""

    def __init__(self) -> None:
        self.rows: weakref.WeakSet[SlideRow] = weakref.WeakSet()
        self.most = 0

    def count(self, made: SlideRow) -> None:
        self.rows.add(made)
        self.most = max(self.most, len(self.rows))


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Alive]:
    """Counts every row from its making to its end."""
    found = Alive()
    monkeypatch.setattr(SlideRow, "__hash__", object.__hash__)
    monkeypatch.setattr(SlideRow, "__eq__", object.__eq__)
    real = SlideRow.__init__

    def counted(self: SlideRow, *args: object, **kwargs: object) -> None:
        real(self, *args, **kwargs)  # type: ignore[arg-type]
        found.count(self)

    monkeypatch.setattr(SlideRow, "__init__", counted)
    gc.collect()
    yield found


@pytest.mark.parametrize("num_slides", [40, 80])
def test_rows_of_a_few_parts_are_alive_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: Alive, num_slides: int
) -> None:
    monkeypatch.setattr(scan_module, "_UNITS_A_PART", 4)
    monkeypatch.setattr(rows_module, "ROWS_WITH_MASKS", 4)
    monkeypatch.setattr(merge_module, "ROWS_WITH_MASKS", 4)
    (source,) = make_slides(tmp_path / "one", 1).iterdir()
    slides = tmp_path / "slides"
    slides.mkdir()
    for i in range(num_slides):
        shutil.copy(source, slides / f"{i:03d}.svs")
    config = config_for(slides, tmp_path / "index", "index.slides_in_flight=2")
    for shard in range(2):
        scan_shard(config, shard, 2, LOG)
    assert 0 < alive.most < 30
    publish_snapshot(config, 2, LOG)
    assert alive.most <= 40, "merging holds a few parts a shard"
    assert len(statuses(tmp_path / "index")) == num_slides


def test_parts_in_any_order_are_merged_by_slide_and_fetched_once(tmp_path: Path) -> None:
    store = CountingStore(open_store(str(tmp_path)))
    names = [f"{i:04d}" for i in range(1200)]
    parts = {f"{shard}-{i}": names[shard::2][i * 50 : i * 50 + 50] for shard in range(2) for i in range(12)}
    parts["late"] = ["0002b", "1058b"]
    for key, slides in parts.items():
        store.put(key, encode_rows([bare_row(slide) for slide in slides]))
    with MergedParts(store, sorted(parts, reverse=True), num_held=2) as merged:
        tables = list(merged.tables())
        assert len(merged) == 1202
    found = [name for table in tables for name in table.column("slide").to_pylist()]
    assert found == sorted([*names, "0002b", "1058b"])
    assert sorted(store.gets) == sorted(parts)


def test_of_many_slides_in_flight_few_pictures_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, most = threading.Semaphore(0), 0
    real = read_slide_module.read_overview

    def counted(*arguments: object) -> Overview:
        nonlocal most
        now.release()
        most = max(most, now._value)
        time.sleep(0.02)
        now.acquire()
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(read_slide_module, "read_overview", counted)
    monkeypatch.setattr(read_slide_module, "_PICTURES_AT_ONCE", threading.BoundedSemaphore(3))
    slides = make_slides(tmp_path / "slides", 12)
    scan_shard(config_for(slides, tmp_path / "index", "index.slides_in_flight=12"), 0, 1, LOG)
    assert most == 3
