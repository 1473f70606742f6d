"""gc never deletes what a run, a snapshot or a younger process may still need."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from eosin.config import dump_config, load_config
from eosin.errors import PermanentError, UserError
from eosin.index.rows import SlideRow, encode_rows
from eosin.index.snapshot import Latest
from eosin.layout import IndexLayout, RegistryLayout, RunLayout
from eosin.records import IndexPin, PatchSetManifest, RegisteredModel, SnapshotManifest
from eosin.records.patchset import PatchSetShard
from eosin.registry.entries import added
from eosin.retention import GcResult, collect
from eosin.slides.model import SlideHeader
from eosin.storage import Store, open_store

DIGESTS = {name: name * 64 for name in "abcdef"}


class World:
    """An index with snapshots, and runs, all of them old unless said otherwise."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.index = open_store(str(root / "indexes" / "tcga"))
        self.runs_uri = str(root / "runs")

    def run(self, name: str, *, pin: str | None = None, text: str | None = None) -> Store:
        store = open_store(f"{self.runs_uri}/{name}")
        config = load_config("train: {keep_checkpoints: 2}\n")
        store.put(RunLayout.CONFIG, (dump_config(config) if text is None else text).encode())
        if pin is not None:
            store.put(RunLayout.INDEX_PIN, IndexPin(index_uri=self.index.uri, snapshot_id=pin).to_json())
        return store

    def checkpoint(self, store: Store, step: int, *, whole: bool = True) -> None:
        store.put(RunLayout.checkpoint_part(step, "student"), b"weights")
        if whole:
            store.put(RunLayout.checkpoint_marker(step), b"{}")

    def snapshot(self, name: str, slides: str, *, whole: bool = True) -> None:
        self.index.put(IndexLayout.snapshot_rows(name), rows(slides))
        if whole:
            manifest = SnapshotManifest(
                snapshot_id=name, rows_sha256="0" * 64, slides_uri="s3://s", indexer_version=1,
                num_slides=len(slides), num_ok=len(slides), tissue_mm2=1.0,
            )  # fmt: skip
            self.index.put(IndexLayout.snapshot_marker(name), manifest.to_json())
        self.tables(slides)

    def tables(self, slides: str) -> None:
        for slide in slides:
            self.index.put(IndexLayout.tiles(DIGESTS[slide]), b"tiles, jpeg")
            self.index.put(IndexLayout.other_reading(DIGESTS[slide]), b"")

    def latest(self, snapshot: str, scan: str = "scan-new") -> None:
        self.index.put(IndexLayout.LATEST, Latest(snapshot_id=snapshot, scan_id=scan).to_json())

    def grow_old(self) -> None:
        old_s = time.time() - 3 * 24 * 3600
        for path in self.root.rglob("*"):
            if path.is_file():
                os.utime(path, (old_s, old_s))

    def keys(self) -> set[str]:
        return {item.key for item in open_store(str(self.root)).list()}

    def gc(
        self, *, delete: bool = True, runs: Sequence[str] | None = None, registries: Sequence[str] = ()
    ) -> tuple[GcResult, set[str]]:
        """The result, and the keys that are gone (relative to the root)."""
        before = self.keys()
        result = collect(runs or [self.runs_uri], [self.index.uri], registries=registries, delete=delete)
        return result, before - self.keys()


def rows(slides: str) -> bytes:
    header = SlideHeader(objects=(), vendor="v", format="svs", levels=(), mpp_x=0.5, mpp_y=0.5)
    made = [
        SlideRow(slide=f"{slide}.svs", status="ok", detail="", header=header, digest=DIGESTS[slide])
        for slide in slides
    ]
    return encode_rows(made)


def tables_of(slides: str) -> set[str]:
    made = {
        make(DIGESTS[slide]) for slide in slides for make in (IndexLayout.tiles, IndexLayout.other_reading)
    }
    return {f"indexes/tcga/{key}" for key in made}


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Snapshots: `new` (newest), `pinned` by a run, `stale`; slides shared between them."""
    world = World(tmp_path)
    world.snapshot("stale", "abc")
    world.snapshot("pinned", "bd")
    world.snapshot("new", "be")
    world.index.put(IndexLayout.shard_part("scan-old", 0, 1, 0), rows("abc"))
    world.index.put(IndexLayout.shard_part("scan-new", 0, 1, 0), rows("be"))
    world.latest("new")
    world.run("done", pin="pinned")
    world.grow_old()
    return world


def test_a_stale_snapshot_goes_with_its_scan_and_the_tables_only_it_used(world: World) -> None:
    _, gone = world.gc()
    assert gone == {
        "indexes/tcga/snapshots/stale/slides.parquet",
        "indexes/tcga/snapshots/stale/COMPLETE.json",
        "indexes/tcga/scans/scan-old/00000-of-00001/00000.parquet",
        *tables_of("ac"),
    }
    assert world.gc()[0].doomed == ()


def test_without_delete_everything_is_listed_and_nothing_gone(world: World) -> None:
    listed, gone = world.gc(delete=False)
    assert not gone
    deleted, gone = world.gc()
    assert [each.keys for each in listed.doomed] == [each.keys for each in deleted.doomed]
    assert sum(len(each.keys) for each in deleted.doomed) == len(gone)
    assert "--delete" in str(listed)


def test_what_is_young_stays_and_keeps_what_it_names(world: World) -> None:
    world.index.put(IndexLayout.shard_part("scan-now", 0, 2, 0), rows("a"))
    world.index.put(IndexLayout.tiles(DIGESTS["f"]), b"not yet in any rows")
    _, gone = world.gc()
    assert gone & (tables_of("a") | tables_of("f")) == set()
    assert tables_of("c") <= gone
    assert not any("scan-now" in key for key in gone)


def test_a_young_object_makes_its_whole_snapshot_young(world: World) -> None:
    world.index.put(IndexLayout.snapshot_marker("stale"), b"{}")
    _, gone = world.gc()
    assert gone == {"indexes/tcga/scans/scan-old/00000-of-00001/00000.parquet"}


@pytest.mark.parametrize("text", ["not: a: config", "unknown_key: 1\n", "\x00", ""])
def test_a_run_that_cannot_be_read_protects_the_whole_index(world: World, text: str) -> None:
    store = world.run("odd", text=text)
    store.put(RunLayout.INDEX_PIN, b"{ half a pin")
    for step in range(5):
        world.checkpoint(store, step)
    world.grow_old()
    result, gone = world.gc()
    assert not gone
    assert any("odd" in reason for reason in result.kept)


def test_a_folder_without_configuration_protects_the_index_and_itself(world: World) -> None:
    store = open_store(f"{world.runs_uri}/no config")
    world.checkpoint(store, 1)
    world.grow_old()
    assert not world.gc()[1]


def test_a_young_run_that_pinned_nothing_yet_protects_the_index(world: World) -> None:
    world.run("starting")
    assert not world.gc()[1]
    world.grow_old()
    assert world.gc()[1]


@pytest.mark.parametrize("damage", [b"", b"{}", b"not json"])
def test_without_a_readable_newest_nothing_of_the_index_goes(world: World, damage: bytes) -> None:
    world.index.put(IndexLayout.LATEST, damage)
    world.grow_old()
    assert not world.gc()[1]
    world.index.delete([IndexLayout.LATEST])
    assert not world.gc()[1]


def test_damaged_rows_of_a_needed_snapshot_protect_all_tables(world: World) -> None:
    world.index.put(IndexLayout.snapshot_rows("pinned"), b"PAR1 damaged")
    world.grow_old()
    result, gone = world.gc()
    assert not gone & tables_of("abcdef")
    assert any("tile tables" in reason for reason in result.kept)


def test_a_pin_that_appears_while_gc_runs_is_respected(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from eosin.retention import collection as module

    judge, calls = module._judge, []

    def pin_after_first(*args: object) -> object:
        judged = judge(*args)  # type: ignore[arg-type]
        if not calls:
            world.run("late", pin="stale")
        calls.append(1)
        return judged

    monkeypatch.setattr(module, "_judge", pin_after_first)
    result, gone = world.gc()
    assert not gone & (tables_of("abc") | {"indexes/tcga/snapshots/stale/slides.parquet"})
    assert any("changed meanwhile" in reason for reason in result.kept)


def test_newest_checkpoints_stay_and_older_and_unfinished_ones_go(world: World) -> None:
    store = world.run("train", pin="new")
    for step in (10, 20, 30, 40):
        world.checkpoint(store, step, whole=step != 30)
    store.put(RunLayout.teacher_card("step-00000010"), b"{}")
    store.put(RunLayout.metric("step-00000010", "knn"), b"{}")
    world.grow_old()
    world.checkpoint(store, 50, whole=False)
    result, gone = world.gc(runs=[f"{world.runs_uri}/train"])
    steps = {10: 2, 30: 1}
    assert {key for key in gone if key.startswith("runs/")} == {
        f"runs/train/{key}"
        for step, parts in steps.items()
        for key in (RunLayout.checkpoint_part(step, "student"), RunLayout.checkpoint_marker(step))[:parts]
    }
    (old,) = (each for each in result.doomed if "to keep" in each.reason)
    assert old.keys[0] == RunLayout.checkpoint_marker(10)


def test_unfinished_shards_go_and_whatever_a_manifest_names_stays(world: World) -> None:
    store = world.run("decode", pin="new")
    named, finished, unfinished = (RunLayout.patch_set_shard("set", number, 3) for number in range(3))
    for key in (named, finished, unfinished):
        store.put(key, b"shard")
    store.put(RunLayout.patch_set_marker_of(finished), b"{}")
    shard = PatchSetShard(key=named.removeprefix(RunLayout.patch_set("set")), num_patches=1, sha256="0")
    manifest = PatchSetManifest(
        name="set", digest="0", patch_px=8, mpp=(0.5,), encoding="png", num_patches=1, shards=(shard,)
    )
    store.put(RunLayout.patch_set_manifest("set"), manifest.to_json())
    store.put(RunLayout.patch_set_shard("damaged", 0, 1), b"shard")
    store.put(RunLayout.patch_set_manifest("damaged"), b"{ half")
    world.grow_old()
    _, gone = world.gc()
    assert {key for key in gone if key.startswith("runs/")} == {f"runs/decode/{unfinished}"}


def test_a_place_without_runs_is_refused_before_an_index_is_judged_by_it(world: World) -> None:
    with pytest.raises(UserError, match="there is no run at"):
        world.gc(runs=[f"{world.runs_uri}-misspelt"])


def test_the_index_alone_is_never_judged(world: World) -> None:
    result = collect([], [world.index.uri], delete=True)
    assert result.doomed == ()
    assert result.kept


def test_what_a_killed_writer_left_is_swept_with_the_rest(world: World) -> None:
    left = world.root / "runs" / "done" / ".eosin-tmp-1-abc"
    left.write_bytes(b"half")
    world.gc()
    assert left.exists()
    world.grow_old()
    world.gc()
    assert not left.exists()


def test_what_a_registered_model_was_trained_on_stays_current_or_not(world: World) -> None:
    """Its run is no longer among the runs."""
    registry = str(world.root / "registry")
    stale = RegisteredModel(
        version=0, run="s3://gone", model="step-00000001", teacher="s3://gone/teachers/step-00000001",
        weights_sha256="a" * 64, index_uri=world.index.uri, snapshot_id="stale",
    )  # fmt: skip
    newer = stale.model_copy(update={"weights_sha256": "b" * 64, "snapshot_id": "new"})
    entry = added(added(None, "vits", stale, ()), "vits", newer, ())
    open_store(registry).put(RegistryLayout.entry("vits"), entry.to_json())
    world.grow_old()
    _, gone = world.gc(registries=[registry])
    assert not any("snapshots/" in key or "tiles/" in key for key in gone)
    _, gone = world.gc()
    assert any("snapshots/stale" in key for key in gone)


def test_a_registry_that_cannot_be_read_or_is_none_stops_the_collection(world: World) -> None:
    registry = open_store(str(world.root / "registry"))
    with pytest.raises(UserError, match="no model in registry"):
        world.gc(registries=[registry.uri])
    registry.put(RegistryLayout.entry("vits"), b"{}")
    world.grow_old()
    before = world.keys()
    with pytest.raises(PermanentError, match="is not a RegistryEntry"):
        world.gc(registries=[registry.uri])
    assert world.keys() == before
