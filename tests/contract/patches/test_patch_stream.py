"""The stream when things go wrong: what is replaced, what is raised, what is never left behind."""

import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eosin.config.patches import PatchesConfig
from eosin.errors import PermanentError, TransientError, UserError
from eosin.index.snapshot import Snapshot
from eosin.observability import RunLog
from eosin.patches.reading.reader import PatchReader
from eosin.patches.reading.sources import RangeSource
from eosin.patches.reading.stage import StagePool
from eosin.patches.request import PatchBatch
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.stream import PatchStream
from eosin.storage import ByteRange, Store, open_store
from tests.support.patches import index_slides, small_slides, write_slide, write_slides
from tests.support.regions import tiles_of_level


class Log(RunLog):
    """Keeps events instead of printing them."""

    def __init__(self) -> None:
        super().__init__("test")
        self.events: list[dict[str, Any]] = []

    def event(self, name: str, /, **fields: Any) -> None:
        self.events.append({"event": name, **fields})


class StoreWith:
    """A store whose ranged reads are changed by `change(ranges, data)`, which may raise."""

    def __init__(self, store: Store, change: Any) -> None:
        self._store, self._change = store, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        result: list[bytes] = self._change(ranges, lambda: self._store.get_ranges(ranges))
        return result


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slides(tmp_path_factory.mktemp("pristine"), 3)


@pytest.fixture
def folder(tmp_path: Path, pristine: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "slides")
    return tmp_path


@pytest.fixture
def snapshot(folder: Path) -> Snapshot:
    return index_slides(folder / "slides", folder / "index")


def read(
    snapshot: Snapshot, log: RunLog | None = None, change: Any = None, num: int = 24, **changes: object
) -> PatchBatch:
    config = PatchesConfig.model_validate({"patch_px": 96, "mpp": (0.25,), **changes})
    store = open_store(snapshot.slides_uri)
    kept: Any = StoreWith(store, change) if change else store
    with PatchStream(Sampler(snapshot, config, seed=2), log or Log(), store=kept) as stream:
        (batch,) = stream.batches([(0, range(num))])
    return batch


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("eosin-patches")]


@pytest.mark.parametrize("reader", ["range", "stage"])
@pytest.mark.parametrize("trouble", ["replaced", "deleted"])
def test_patches_of_a_slide_that_went_are_replaced(
    folder: Path, snapshot: Snapshot, reader: str, trouble: str
) -> None:
    before = read(snapshot)
    victim = folder / "slides" / "slide-1.svs"
    if trouble == "deleted":
        victim.unlink()
    else:
        write_slide(victim, seed=999, config=small_slides())
    log = Log()
    after = read(snapshot, log, reader=reader, stage_dir=str(folder / "stage"))
    for old, new, old_pixels, new_pixels in zip(
        before.requests, after.requests, before.pixels, after.pixels, strict=True
    ):
        assert new.slide != 1 and new.index == old.index
        if old.slide != 1:
            assert new == old and np.array_equal(old_pixels, new_pixels)
        else:
            assert new.attempt >= 1
    assert {event["slide"] for event in log.events} == {"slide-1.svs"}
    assert {event["reason"] for event in log.events} == {"missing" if trouble == "deleted" else "changed"}
    again = read(snapshot, reader=reader, stage_dir=str(folder / "stage"))
    assert again.requests == after.requests and np.array_equal(again.pixels, after.pixels)


def test_a_corrupt_tile_costs_only_the_patches_on_it(folder: Path, snapshot: Snapshot) -> None:
    before = read(snapshot, num=60)
    header = snapshot.rows[0].header
    table = tiles_of_level(snapshot, snapshot.rows[0], 0)
    middle = int(header.levels[0].num_tiles_x * (header.levels[0].num_tiles_y // 2) + 3)
    offset, size_bytes, _ = table[middle].tolist()

    def corrupt(ranges: Sequence[ByteRange], get: Any) -> list[bytes]:
        return [
            b"\0" * len(data) if (each.key, each.start) == ("slide-0.svs", offset) else data
            for each, data in zip(ranges, get(), strict=True)
        ]

    log = Log()
    after = read(snapshot, log, corrupt, num=60)
    changed = [i for i in range(60) if before.requests[i] != after.requests[i]]
    assert changed and len(changed) < 30
    assert {event["reason"] for event in log.events} == {"corrupt-tile"}
    assert {event["index"] for event in log.events} == set(changed)
    assert size_bytes and all(event["slide"] == "slide-0.svs" for event in log.events)


def test_a_short_tile_is_a_corrupt_one(snapshot: Snapshot) -> None:
    log = Log()

    def shorten(ranges: Sequence[ByteRange], get: Any) -> list[bytes]:
        return [
            data[:-9] if each.key == "slide-2.svs" else data for each, data in zip(ranges, get(), strict=True)
        ]

    batch = read(snapshot, log, shorten)
    assert 2 not in {request.slide for request in batch.requests}
    assert {event["reason"] for event in log.events} == {"corrupt-tile"}


def test_trouble_of_the_whole_store_is_raised_not_redrawn(snapshot: Snapshot) -> None:
    def down(ranges: Sequence[ByteRange], get: Any) -> list[bytes]:
        raise TransientError("the store is down")

    log = Log()
    with pytest.raises(TransientError, match="down"):
        read(snapshot, log, down)
    assert not log.events and not threads()


def test_when_no_substitute_can_be_read_the_slides_are_named(folder: Path, snapshot: Snapshot) -> None:
    for path in (folder / "slides").iterdir():
        path.unlink()
    with pytest.raises(PermanentError, match=r"slide-0\.svs \(missing\), slide-1\.svs \(missing\)"):
        read(snapshot)


def test_the_consumer_sets_the_pace(snapshot: Snapshot) -> None:
    config = PatchesConfig(patch_px=96, mpp=(0.25,), prefetch_batches=2)
    asked: list[int] = []

    def endless() -> Iterator[tuple[int, range]]:
        step = 0
        while True:
            asked.append(step)
            yield step, range(4)
            step += 1

    with PatchStream(Sampler(snapshot, config, seed=2), Log()) as stream:
        batches = stream.batches(endless())
        for taken in range(1, 6):
            next(batches)
            time.sleep(0.02)
            assert len(asked) <= taken + 2
        batches.close()
    assert not threads()


def test_closing_before_the_end_leaves_no_thread(snapshot: Snapshot) -> None:
    config = PatchesConfig(patch_px=96, mpp=(0.25,))
    stream = PatchStream(Sampler(snapshot, config, seed=2), Log(), num_threads=3)
    batches = stream.batches((step, range(30)) for step in range(1000))
    next(batches)
    assert threads()
    stream.close()
    stream.close()
    assert not threads()


def test_the_tile_cache_never_exceeds_its_bytes(snapshot: Snapshot) -> None:
    limit = 5 * 240 * 240 * 3
    config = PatchesConfig(patch_px=96, mpp=(0.25,), tile_cache_bytes=limit)
    sampler = Sampler(snapshot, config, seed=2)
    source = RangeSource(open_store(snapshot.slides_uri))
    reader = PatchReader(snapshot, config, source, None, share_tiles=True)
    for step in range(10):
        reader.read(sampler.draw_batch(step, range(16)))
        assert 0 < reader._tiles.num_bytes <= limit


def test_the_stage_pool_stays_within_its_bytes_and_evicts_the_longest_unused(
    folder: Path, snapshot: Snapshot
) -> None:
    objects = [row.header.objects for row in snapshot.rows]
    sizes = [each[0].size_bytes for each in objects]
    pool = StagePool(open_store(snapshot.slides_uri), folder / "stage", max(sizes) * 2 + 1000)
    for use in (0, 1, 0, 2, 1, 0):
        with pool.use(objects[use]) as staged:
            assert sum(path.stat().st_size for path in (folder / "stage").rglob("*.svs")) <= pool.max_bytes
            assert (staged / "slide" / f"slide-{use}.svs").stat().st_size == sizes[use]
        time.sleep(0.01)
    left = {path.name for path in (folder / "stage").rglob("*.svs")}
    assert left == {"slide-0.svs", "slide-1.svs"}


def test_a_slide_in_use_is_not_evicted(
    folder: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eosin.patches.reading.stage._WAIT_FOR_ROOM_S", 0.2)
    objects = [row.header.objects for row in snapshot.rows]
    pool = StagePool(open_store(snapshot.slides_uri), folder / "stage", max(o[0].size_bytes for o in objects))
    with pool.use(objects[0]) as held:
        with pytest.raises(TransientError, match="in use"), pool.use(objects[1]):
            pass
        assert (held / "slide" / "slide-0.svs").exists()
    with pool.use(objects[1]):
        assert not held.exists()


def test_a_slide_larger_than_the_pool_is_the_users_error(folder: Path, snapshot: Snapshot) -> None:
    pool = StagePool(open_store(snapshot.slides_uri), folder / "stage", 1000)
    with pytest.raises(UserError, match="does not fit"), pool.use(snapshot.rows[0].header.objects):
        pass


def test_what_a_killed_process_left_half_staged_is_cleared_away(folder: Path, snapshot: Snapshot) -> None:
    objects = snapshot.rows[0].header.objects
    pool = StagePool(open_store(snapshot.slides_uri), folder / "stage", objects[0].size_bytes)
    with pool.use(objects) as staged:
        name = staged.name
    staged.rename(folder / "stage" / f"{name}.killed.part")
    with pool.use(objects) as staged:
        assert (staged / "slide" / "slide-0.svs").exists()
    assert not list((folder / "stage").glob("*.part"))


def test_many_threads_share_one_download(folder: Path, snapshot: Snapshot) -> None:
    downloads: list[str] = []

    class Counting(StoreWith):
        def download(self, key: str, path: Path) -> Any:
            downloads.append(key)
            time.sleep(0.05)
            return self._store.download(key, path)

    store: Any = Counting(open_store(snapshot.slides_uri), None)
    pool = StagePool(store, folder / "stage", 10**9)

    def use() -> None:
        with pool.use(snapshot.rows[0].header.objects):
            pass

    workers = [threading.Thread(target=use) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert downloads == ["slide-0.svs"]


def test_a_folder_that_cannot_be_used_is_the_users_error(folder: Path, snapshot: Snapshot) -> None:
    (folder / "file").write_text("in the way")
    with pytest.raises(UserError, match="no slide can be staged"):
        read(snapshot, reader="stage", stage_dir=str(folder / "file" / "stage"))


def test_the_pool_leaves_part_of_the_disk_free(
    folder: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = snapshot.rows[0].header.objects
    usage = shutil.disk_usage(folder)._replace(free=1000)
    monkeypatch.setattr("eosin.patches.reading.stage.shutil.disk_usage", lambda _: usage)
    pool = StagePool(open_store(snapshot.slides_uri), folder / "stage", 10**12)
    with pytest.raises(UserError, match="900 bytes"), pool.use(objects):
        pass
