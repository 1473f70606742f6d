"""One listing for all steps of a run's index, whatever is added, replaced or deleted between them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from eosin import steps
from eosin.errors import UserError
from eosin.index.listing import in_shard
from eosin.index.plan import plan_scan, scan_of_run
from eosin.index.snapshot import open_snapshot
from eosin.layout import IndexLayout, RunLayout
from eosin.retention.collection import collect
from eosin.runs import load_pin, load_run
from eosin.storage import open_store
from tests.support.indexing import config_for, index, make_slides, rows_of, statuses
from tests.support.onnx_models import color_model
from tests.support.slide_files import tissue_picture, write_aperio

NUM_SHARDS = 2
# The steps between which something happens: plan, shard 0, shard 1, merge, and the first three again.
STEPS: tuple[Callable[[str], object], ...] = (
    lambda run: steps.index_shards(run, NUM_SHARDS),
    lambda run: steps.index_shard(run, 0, NUM_SHARDS),
    lambda run: steps.index_shard(run, 1, NUM_SHARDS),
    lambda run: steps.snapshot(run, NUM_SHARDS),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_slides(tmp_path / "slides")


@pytest.fixture
def run(tmp_path: Path, folder: Path) -> str:
    uri = f"file://{tmp_path}/runs/first"
    source = steps.ConfigSource(
        "demo", (f"index.num_shards={NUM_SHARDS}",), str(folder), str(tmp_path / "index")
    )
    steps.plan(uri, source)
    return uri


def add(folder: Path) -> None:
    write_aperio(folder / "late.svs", [tissue_picture(500, 500, seed=9)], mpp=0.5, compression="jpeg")


def replace(folder: Path) -> None:
    write_aperio(folder / "slide-0.svs", [tissue_picture(640, 640, seed=8)], mpp=0.5, compression="jpeg")


def delete(folder: Path) -> None:
    (folder / "slide-0.svs").unlink()


def all_of_it(folder: Path) -> None:
    add(folder)
    replace(folder)
    (folder / "slide-1.svs").unlink()


@pytest.mark.parametrize("before", range(len(STEPS)))
@pytest.mark.parametrize("event", [add, replace, delete, all_of_it])
def test_the_run_passes_and_holds_what_was_listed(
    run: str, folder: Path, tmp_path: Path, event: Callable[[Path], None], before: int
) -> None:
    """Happening before the plan it is part of the listing; afterwards it is a reason, or for the next run."""
    for number, step in enumerate(STEPS):
        if number == before:
            event(folder)
        step(run)
        step(run)  # tried again, as Kubeflow does
    found = statuses(tmp_path / "index")
    if before == 0:
        assert set(found) == {path.name for path in folder.glob("*.svs")}
        assert set(found.values()) == {"ok"}
        return
    assert set(found) == {f"slide-{i}.svs" for i in range(4)}, "what came later is for the next run"
    shard = {name: _shard_of(tmp_path, folder, name) for name in found}
    expected = dict.fromkeys(found, "ok")
    if event in (replace, all_of_it) and before <= 1 + shard["slide-0.svs"]:
        expected["slide-0.svs"] = "changed"
    if event is delete and before <= 1 + shard["slide-0.svs"]:
        expected["slide-0.svs"] = "missing"
    if event is all_of_it and before <= 1 + shard["slide-1.svs"]:
        expected["slide-1.svs"] = "missing"
    assert found == expected


def _shard_of(tmp_path: Path, folder: Path, name: str) -> int:
    units = plan_scan(load_run(f"file://{tmp_path}/runs/first")).units
    known = {unit.key: unit for unit in units}
    if name not in known:  # deleted meanwhile: a unit's shard depends on its key alone
        known[name] = units[0].__class__(name, "slide", units[0].objects)
    return next(shard for shard in range(NUM_SHARDS) if in_shard(known[name], shard, NUM_SHARDS))


def test_the_reason_says_what_happened(run: str, folder: Path, tmp_path: Path) -> None:
    steps.index_shards(run, NUM_SHARDS)
    all_of_it(folder)
    for step in STEPS[1:]:
        step(run)
    rows = rows_of(tmp_path / "index")
    assert rows["slide-0.svs"].detail == "slide-0.svs was replaced since it was listed"
    assert rows["slide-1.svs"].detail == "slide-1.svs is no longer there"


def test_the_next_run_takes_what_came_later_and_reads_only_that(
    run: str, folder: Path, tmp_path: Path
) -> None:
    steps.index_shards(run, NUM_SHARDS)
    all_of_it(folder)
    for step in STEPS[1:]:
        step(run)
    second = f"file://{tmp_path}/runs/second"
    steps.plan(second, steps.ConfigSource(f"{run}/{RunLayout.CONFIG}"))
    for step in STEPS:
        step(second)
    pin = load_pin(second)
    rows = {row.slide: row.status for row in open_snapshot(pin.index_uri, pin.snapshot_id).rows}
    assert rows == {f"{name}.svs": "ok" for name in ("late", "slide-0", "slide-2", "slide-3")}
    assert load_pin(run).snapshot_id != pin.snapshot_id


def test_overrides_that_are_edited_meanwhile_are_for_the_next_run(tmp_path: Path, folder: Path) -> None:
    overrides = tmp_path / "overrides.csv"
    overrides.write_text("slide,patient\nslide-0,A\n")
    uri = f"file://{tmp_path}/runs/first"
    settings = (f"slides.overrides={overrides}",)
    steps.plan(uri, steps.ConfigSource("demo", settings, str(folder), str(tmp_path / "index")))
    for step in STEPS:
        step(uri)
        overrides.write_text("slide,patient\nslide-0,B\nslide-1,B\n")
    assert [row.patient for _, row in sorted(rows_of(tmp_path / "index").items())] == ["A", "", "", ""]


def test_a_tissue_model_that_is_replaced_meanwhile_is_for_the_next_run(tmp_path: Path, folder: Path) -> None:
    model = tmp_path / "tissue.onnx"
    model.write_bytes(color_model([-20, -20, -20], 52))
    uri = f"file://{tmp_path}/runs/first"
    settings = (f"index.tissue.onnx={model}",)
    steps.plan(uri, steps.ConfigSource("demo", settings, str(folder), str(tmp_path / "index")))
    for step in STEPS:
        step(uri)
        model.write_bytes(b"no model at all")
    assert set(statuses(tmp_path / "index").values()) == {"ok"}


def test_a_run_that_found_no_usable_slide_lists_the_folder_anew(tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "slide-0.svs").write_bytes(b"still being copied")
    uri = f"file://{tmp_path}/runs/first"
    steps.plan(uri, steps.ConfigSource("demo", (), str(folder), str(tmp_path / "index")))
    with pytest.raises(UserError, match=r"no slide in .* can be used \(1 "):
        steps.index_run(uri, None, None)
    make_slides(folder, 2)
    steps.index_run(uri, None, None)
    assert set(statuses(tmp_path / "index").values()) == {"ok"}


def test_a_listing_that_was_deleted_is_taken_anew(run: str, folder: Path, tmp_path: Path) -> None:
    steps.index_shards(run, NUM_SHARDS)
    index_store, run_store = open_store(str(tmp_path / "index")), open_store(run)
    index_store.delete([item.key for item in index_store.list(IndexLayout.SCANS)])
    add(folder)
    config = load_run(run)
    scan_id = scan_of_run(run_store, config)
    assert scan_of_run(run_store, config) == scan_id == plan_scan(config).scan_id


def test_a_scan_without_a_run_goes_on_by_its_name(folder: Path, tmp_path: Path) -> None:
    config = config_for(folder, tmp_path / "index")
    first = steps.index_slides(config, (0, 2), None)
    add(folder)
    steps.index_slides(config, (1, 2), None, first.scan_id)
    with pytest.raises(UserError, match=r"shards of scan .* are missing") as raised:
        steps.index_slides(config, None, 2)
    assert "--scan" in raised.value.hint
    assert steps.index_slides(config, None, 2, first.scan_id).num_ok == 4
    with pytest.raises(UserError, match="there is no scan 0000"):
        steps.index_slides(config, (0, 2), None, "0000")


def test_listings_keep_no_table_and_stop_no_collection(folder: Path, tmp_path: Path, run: str) -> None:
    for step in STEPS:
        step(run)
    (folder / "slide-3.svs").unlink()
    index(config_for(folder, tmp_path / "index"))
    result = collect([str(tmp_path / "runs")], [str(tmp_path / "index")], min_age_s=0)
    assert not result.kept
