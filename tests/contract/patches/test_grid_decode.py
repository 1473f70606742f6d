"""Grids of patches: every position with enough tissue, once, whatever the workers, and in bounded shards."""

import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eosin import steps
from eosin.config import RunConfig, load_config
from eosin.config.patches import GridConfig, PatchesConfig
from eosin.errors import UserError
from eosin.evaluation.datasets.open_dataset import open_patch_set
from eosin.index.publish import publish_snapshot
from eosin.index.rows import SlideRow
from eosin.index.scan import scan_shard
from eosin.index.snapshot import open_snapshot
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.patches.sampling.grid import GridPlan, grid_positions, plan_grid
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.sets.patchset import read_manifest, read_shard
from eosin.patches.sets.training_set import PatchSetSource
from eosin.records import IndexPin, PatchSetManifest
from eosin.records.patchset_shard import PatchRow
from eosin.runs import pin_index, prepare_run
from eosin.storage import open_store
from tests.support.patches import paper_header, paper_row, paper_snapshot, read_patch_set, write_slides

LOG = RunLog("test")
MAIN = "import sys; from eosin.cli.app import main; sys.exit(main())"


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    write_slides(folder / "slides", 4)
    scan_shard(config(folder), 0, 1, LOG)
    publish_snapshot(config(folder), 1, LOG)
    return folder


def config(folder: Path, grid: str = "{mpp: 0.5, patches_per_shard: 10}", *more: str) -> RunConfig:
    return load_config("", overrides=[
        f"slides.uri={folder}/slides", f"index.uri={folder}/index", "patches.patch_px=64",
        "patches.mpp=[0.5, 1.0]", "augment.global_px=64", "augment.local_px=32",
        f"patches.sets.tiles={grid}", *more,
    ])  # fmt: skip


def begin(folder: Path, run: Path, *args: str) -> str:
    prepare_run(str(run), config(folder, *args))
    snapshot = open_snapshot(f"{folder}/index")
    pin_index(str(run), IndexPin(index_uri=f"{folder}/index", snapshot_id=snapshot.manifest.snapshot_id))
    return str(run)


def decode(run: str, num_workers: int = 1) -> PatchSetManifest:
    found = [steps.decode(run, worker, num_workers, "tiles") for worker in reversed(range(num_workers))]
    assert all(manifest is None for manifest in found[:-1]) and found[-1] is not None
    return found[-1]


def folder_of(run: str) -> Path:
    return Path(run, RunLayout.patch_set("tiles"))


def rows_of(run: str) -> list[PatchRow]:
    return list(read_patch_set(str(folder_of(run)))[1])


def paper_plan(folder: Path, rows: list[SlideRow], **grid: Any) -> GridPlan:
    tree = {"patch_px": 128, "mpp": [0.25], "sets": {"tiles": {"mpp": 0.5, **grid}}}
    patches = PatchesConfig.model_validate(tree)
    found = patches.sets["tiles"]
    assert isinstance(found, GridConfig)
    return plan_grid(paper_snapshot(folder, rows), patches, found)


def test_a_grid_covers_the_slide_without_gap_or_overlap(tmp_path: Path) -> None:
    found = paper_plan(tmp_path, [paper_row("a.svs", paper_header(1800, 1100))]).slide(0)
    assert [(r.x_px, r.y_px) for r in found] == [
        (x, y) for y in range(0, 1024, 256) for x in range(0, 1792, 256)
    ]
    assert [r.index for r in found] == list(range(28))


def test_overlap_and_uneven_scales_do_not_add_up(tmp_path: Path) -> None:
    row = paper_row("a.svs", paper_header(9000, 700, mpp=0.2523))
    plan = paper_plan(tmp_path, [row], overlap_px=32)
    x = sorted({r.x_px for r in plan.slide(0)})
    stride = 96 * 0.5 / 0.2523
    assert np.abs(np.array(x) - np.arange(len(x)) * stride).max() <= 0.5
    assert x[-1] + 128 * 0.5 / 0.2523 <= 9000 < x[-1] + stride + 128 * 0.5 / 0.2523


def test_only_positions_with_enough_tissue_on_slides_that_serve(tmp_path: Path) -> None:
    mask = np.zeros((40, 60), bool)
    mask[7:22, 11:37] = True
    rows = [
        paper_row("coarse.svs", paper_header(4000, 4000, mpp=4.0)),
        paper_row("part.svs", paper_header(6000, 4000), mask),
        paper_row("small.svs", paper_header(200, 4000)),
    ]
    plan = paper_plan(tmp_path, rows, min_foreground=0.55)
    assert plan.slides.tolist() == [1]
    tissue = plan.snapshot.rows[1].tissue
    assert tissue is not None
    places = itertools.product(range(0, 6000 - 255, 256), range(0, 4000 - 255, 256))
    expected = {(x, y) for x, y in places if tissue.fraction(x, y, 256, 256) >= 0.55}
    found = [(r.x_px, r.y_px) for r in plan.slide(0)]
    assert set(found) == expected and len(found) == len(expected)
    x, y = grid_positions(plan.snapshot.rows[2], plan.grid, 128)
    assert len(x) == len(y) == 0


def test_the_set_is_the_same_whatever_the_workers(indexed: Path, tmp_path: Path) -> None:
    runs = [begin(indexed, tmp_path / f"run-{num}") for num in (1, 3)]
    one, three = decode(runs[0]), decode(runs[1], 3)
    assert one == three and len(one.shards) > 3
    assert max(shard.num_patches for shard in one.shards) == 10
    for shard in one.shards:
        data = [(folder_of(run) / shard.key).read_bytes() for run in runs]
        assert data[0] == data[1]


def test_every_patch_is_what_a_plain_read_of_the_slide_gives(indexed: Path, tmp_path: Path) -> None:
    import openslide

    run = begin(
        indexed,
        tmp_path / "run",
        "{mpp: 0.25, min_foreground: 0.9, overlap_px: 5, patches_per_shard: 200,"
        " slides: ['slide-1.svs', 'slide-2.svs']}",
    )
    decode(run)
    rows = rows_of(run)
    assert {row.slide for row in rows} == {"slide-1.svs", "slide-2.svs"}
    for row in rows[:: max(1, len(rows) // 12)]:
        assert row.foreground >= 0.9 - 1e-6 and row.mpp == 0.25
        with openslide.OpenSlide(str(indexed / "slides" / row.slide)) as slide:
            expected = np.asarray(slide.read_region((row.x_px, row.y_px), 0, (64, 64)).convert("RGB"), int)
        found = np.asarray(Image.open(io.BytesIO(row.image)), int)
        assert np.abs(found - expected).max() <= 3


def test_a_grid_goes_on_after_its_last_whole_shard(indexed: Path, tmp_path: Path) -> None:
    whole = decode(begin(indexed, tmp_path / "whole"))
    run = begin(indexed, tmp_path / "run")
    decode(run)
    folder = folder_of(run)
    (folder / "manifest.json").unlink()
    lost = [folder / whole.shards[1].key, folder / whole.shards[3].key]
    lost[0].unlink()  # under its marker
    lost[1].with_suffix(".json").unlink()  # killed before its marker
    kept = folder / whole.shards[0].key
    before = kept.stat().st_mtime_ns
    assert decode(run) == whole and kept.stat().st_mtime_ns == before
    assert all(path.exists() for path in lost)


def test_chosen_slides_and_splits(indexed: Path, tmp_path: Path) -> None:
    run = begin(indexed, tmp_path / "chosen", "{slides: ['slide-1*', 'slide-3.svs']}")
    assert decode(run).slides == ("slide-1.svs", "slide-3.svs")
    sides = {
        side: decode(begin(indexed, tmp_path / side, f"{{split: {side}}}")) for side in ("train", "heldout")
    }
    snapshot = open_snapshot(f"{indexed}/index")
    for side, manifest in sides.items():
        made = Sampler(snapshot, config(indexed).patches, seed=0, split=side)  # type: ignore[arg-type]
        assert set(manifest.slides) == {snapshot.rows[int(number)].slide for number in made.slides}


def test_a_colour_filter_leaves_patches_out(indexed: Path, tmp_path: Path) -> None:
    every = decode(begin(indexed, tmp_path / "every"))
    strict = "{patches_per_shard: 10, hsv_filter: {saturation: [60, 255], min_share: 0.5}}"
    run = begin(indexed, tmp_path / "strict", strict)
    manifest = decode(run)
    assert 0 < manifest.num_patches < every.num_patches and not manifest.rejected
    kept = {(row.slide, row.x_px, row.y_px) for row in rows_of(run)}
    assert kept < {(row.slide, row.x_px, row.y_px) for row in rows_of(str(tmp_path / "every"))}


def test_a_slide_that_is_gone_is_told_and_the_rest_is_there(indexed: Path, tmp_path: Path) -> None:
    shutil.copytree(indexed / "slides", tmp_path / "slides")
    scan_shard(config(tmp_path), 0, 1, LOG)
    publish_snapshot(config(tmp_path), 1, LOG)
    run = begin(tmp_path, tmp_path / "run", "{patches_per_shard: 30}")
    (tmp_path / "slides" / "slide-2.svs").unlink()
    manifest = decode(run)
    assert manifest.slides == ("slide-0.svs", "slide-1.svs", "slide-3.svs")
    assert {patch.slide for patch in manifest.rejected} == {"slide-2.svs"}
    assert len(manifest.rejected) <= 8 * len(manifest.shards)
    assert any("positions of slide-2.svs could not be read" in note for note in manifest.notes)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("{slides: ['tcga/*']}", "'tcga/\\*' matches none of the 4 slides"),
        ("{min_foreground: 1.0, mpp: 1.9, patch_px: 180}", "patch set tiles has no patch"),
        ("{patch_px: 4000}", "no patch can be drawn"),
    ],
)
def test_a_grid_without_patches_says_why(indexed: Path, tmp_path: Path, grid: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        decode(begin(indexed, tmp_path / "run", grid))


def test_a_set_that_was_not_declared_is_refused_with_those_there_are(indexed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no patch set 'other'; it has heldout, tiles"):
        steps.decode(begin(indexed, tmp_path / "run"), 0, 1, "other")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("patches.sets.heldout={}", "name of the held-out set"),
        ("patches.sets.tiles={overlap_px: 256}", "leaves nothing"),
        ("patches.sets.Tiles={}", "pattern"),
        ("patches.sets.tiles={mpp: 0}", "greater than 0"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config("", overrides=[override])


def test_a_grid_does_not_change_what_training_is(indexed: Path) -> None:
    assert load_config("", overrides=["patches.sets.tiles={mpp: 1.0}"]).digest() == RunConfig().digest()


def test_a_slide_is_one_workers_and_its_shards_hold_no_others(indexed: Path, tmp_path: Path) -> None:
    run = begin(indexed, tmp_path / "run")
    assert steps.decode(run, 1, 3, "tiles") is None
    own = {int(path.name[:6]) for path in folder_of(run).glob("*.parquet")}
    assert own == {1}
    for shard in decode(run).shards:
        rows = read_shard(open_store(str(folder_of(run))), shard)
        assert len({row.slide for row in rows}) == 1


def test_a_set_is_declared_when_it_is_decoded_and_then_stays_what_it_is(
    indexed: Path, tmp_path: Path
) -> None:
    run = begin(indexed, tmp_path / "run")
    made = steps.decode(run, 0, 1, "few", ["mpp=1.0", "encoding=jpeg"], ["*-2.svs"])
    assert made is not None and made.slides == ("slide-2.svs",) and made.mpp == (1.0,)
    assert steps.decode(run, 0, 1, "few") == made
    with pytest.raises(UserError, match=r"begun as another: mpp: 1\.0 → 0\.5"):
        steps.decode(run, 0, 1, "few", ["mpp=0.5", "encoding=jpeg"], ["*-2.svs"])
    with pytest.raises(UserError, match="unknown key"):
        steps.decode(run, 0, 1, "other", ["mppp=0.5"])
    with pytest.raises(UserError, match="held-out set is what"):
        steps.decode(run, 0, 1, "heldout", [], ["a*"])


def test_a_grid_of_slides_that_are_all_gone_says_so(indexed: Path, tmp_path: Path) -> None:
    shutil.copytree(indexed, tmp_path / "copy")
    settings = config(tmp_path / "copy")
    scan_shard(settings, 0, 1, LOG)
    publish_snapshot(settings, 1, LOG)
    run = begin(tmp_path / "copy", tmp_path / "run")
    shutil.rmtree(tmp_path / "copy" / "slides")
    with pytest.raises(UserError, match="no longer there") as caught:
        steps.decode(run, 0, 1, "tiles")
    assert "index the slides again" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["mpp=0.05"], "'\\*-2.svs' matches none|no patch can be drawn"),
        (["kind=sampled", "num_patches=5", "split=train", "slides=[nothing*]"], "nothing"),
    ],
)
def test_a_slip_does_not_use_up_a_name(indexed: Path, tmp_path: Path, wrong: list[str], message: str) -> None:
    run = begin(indexed, tmp_path / "run")
    with pytest.raises(UserError, match=message):
        steps.decode(run, 0, 1, "few", wrong, [] if len(wrong) > 1 else ["*-2.svs"])
    assert steps.decode(run, 0, 1, "few", ["mpp=1.0"], ["*-2.svs"]) is not None


def test_a_pattern_of_slides_that_do_not_serve_says_why_not(tmp_path: Path) -> None:
    rows = [paper_row("a.svs", paper_header(4000, 4000)), paper_row("c/b.svs", paper_header(300, 200))]
    with pytest.raises(UserError, match=r"1 slides .* matches 1 that do not:\n  c/b.svs: too-small"):
        paper_plan(tmp_path, rows, slides=["c/*"])


def test_a_step_without_a_name_decodes_what_the_tasks_read(indexed: Path, tmp_path: Path) -> None:
    tasks = "evaluate.tasks=[{kind: robustness, name: r, patch_set: tiles}]"
    more = "patches.sets.unused={mpp: 1.0}"
    run = begin(indexed, tmp_path / "run", "{mpp: 1.0}", tasks, more, "patches.heldout.num_patches=4")
    made = steps.decode(run, 0, 1)
    assert made is not None and made.name == "heldout"
    assert {path.name for path in Path(run, "patches").iterdir()} == {"heldout", "tiles"}
    assert read_manifest(str(folder_of(run))).num_patches


def test_a_tar_holds_what_the_parquet_holds_by_the_convention_of_webdataset(
    indexed: Path, tmp_path: Path
) -> None:
    run = begin(indexed, tmp_path / "parquet")
    decode(run)
    tars = begin(indexed, tmp_path / "tar", "{mpp: 0.5, patches_per_shard: 10, format: webdataset}")
    manifest = decode(tars)
    assert manifest.format == "webdataset" and rows_of(tars) == rows_of(run)
    keys = []
    for shard in manifest.shards:
        with tarfile.open(folder_of(tars) / shard.key) as tar:
            names = tar.getnames()
            by_name = itertools.groupby(names, lambda file: file.partition(".")[0])
            grouped = {name: [file.partition(".")[2] for file in files] for name, files in by_name}
            assert len(grouped) * 2 == len(names)  # a sample's files stand together
            keys += list(grouped)
            assert all(files == ["png", "json"] for files in grouped.values())
            first = next(iter(grouped))
            image, known = tar.extractfile(f"{first}.png"), tar.extractfile(f"{first}.json")
            assert image is not None and known is not None
            data, fields = image.read(), json.load(known)
        assert Image.open(io.BytesIO(data)).size == (64, 64)
        assert fields["sha256"] == hashlib.sha256(data).hexdigest() and fields["slide"] in manifest.slides
    assert len(keys) == len(set(keys)) == manifest.num_patches


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_every_reader_takes_either_format(indexed: Path, tmp_path: Path, format: str) -> None:
    run = begin(indexed, tmp_path / "run", f"{{mpp: 0.5, patches_per_shard: 10, format: {format}}}")
    manifest = decode(run)
    uri = str(folder_of(run))
    dataset = open_patch_set(open_store(uri))
    assert len(dataset.samples) == manifest.num_patches
    assert dataset.read([0, 7]) == [row.image for row in (rows_of(run)[0], rows_of(run)[7])]
    source = PatchSetSource(uri, seed=1, patch_px=64, directory=tmp_path)
    (batch,) = source.batches([(0, range(5))])
    source.close()
    assert batch.pixels.shape == (5, 64, 64, 3)


def test_a_sampled_set_is_the_samplers_patches_whatever_the_workers(indexed: Path, tmp_path: Path) -> None:
    spec = "{kind: sampled, num_patches: 37, patches_per_shard: 8, split: train, seed: 3}"
    runs = [begin(indexed, tmp_path / f"run-{num}", spec) for num in (1, 3)]
    one, three = decode(runs[0]), decode(runs[1], 3)
    assert one == three and [shard.num_patches for shard in one.shards] == [8, 8, 8, 8, 5]
    snapshot = open_snapshot(f"{indexed}/index")
    train = Sampler(snapshot, config(indexed).patches, seed=0, split="train")
    assert set(one.slides) <= {snapshot.rows[int(number)].slide for number in train.slides}
    rows = rows_of(runs[0])
    names = [row.slide for row in rows]
    assert names == sorted(names, key=[row.slide for row in snapshot.rows].index)
    less = begin(indexed, tmp_path / "less", spec.replace("37", "20"))
    decode(less)
    assert {row.sha256 for row in rows_of(less)} <= {row.sha256 for row in rows}


def test_two_workers_at_once_make_the_set_of_one(indexed: Path, tmp_path: Path) -> None:
    alone = decode(begin(indexed, tmp_path / "alone"))
    run = begin(indexed, tmp_path / "run")
    command = [sys.executable, "-c", MAIN, "decode", run, "--name", "tiles", "--shard"]
    workers = [subprocess.Popen([*command, f"{i}/2"], stderr=subprocess.DEVNULL) for i in range(2)]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    assert read_manifest(str(folder_of(run))) == alone


def test_a_killed_worker_goes_on_and_ends_with_the_same_bytes(indexed: Path, tmp_path: Path) -> None:
    whole = decode(begin(indexed, tmp_path / "whole", "{mpp: 0.5, patches_per_shard: 20}"))
    run = begin(indexed, tmp_path / "killed", "{mpp: 0.5, patches_per_shard: 20}")
    command = [sys.executable, "-c", MAIN, "decode", run, "--name", "tiles"]
    for num_shards in (1, 4):
        worker = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        while worker.poll() is None and len(list(folder_of(run).glob("*.parquet"))) < num_shards:
            time.sleep(0.005)
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    assert not (folder_of(run) / "manifest.json").exists()
    assert decode(run) == whole
