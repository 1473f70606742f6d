"""Training from a published patch set: it runs, purely, and a set that does not fit the run is refused."""

import json
from pathlib import Path

import pytest

from eosin import steps
from eosin.config import RunConfig, load_config
from eosin.errors import UserError
from eosin.index.publish import publish_snapshot
from eosin.index.scan import scan_shard
from eosin.index.snapshot import open_snapshot
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.patches.check import check_patches
from eosin.records import IndexPin
from eosin.runs import load_run, pin_index, prepare_run
from eosin.training.worker import open_stream, run_worker
from tests.support.patches import write_slides

LOG = RunLog("test")
TRAINING = [
    "patches.patch_px=32", "augment.global_px=32", "augment.local_px=16", "augment.num_local=2",
    "model.arch=vit_tiny_patch16_224",
    "model.arch_args={patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}",
    "model.dino_head={num_prototypes: 64, hidden_dim: 32, bottleneck_dim: 16}",
    "train.num_steps=3", "train.batch_size=8", "train.num_microbatches=4", "train.precision=float32",
    "train.checkpoint_every_steps=3", "train.export_every_steps=3", "train.log_every_steps=1",
    "train.optimizer.warmup_steps=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four indexed slides, and a run with the grids `train` and `all` of them decoded."""
    folder = tmp_path_factory.mktemp("from-set")
    write_slides(folder / "slides", 4)
    made = config(folder, "patches.sets.train={mpp: 1.0, split: train}", "patches.sets.all={mpp: 1.0}")
    scan_shard(made, 0, 1, LOG)
    publish_snapshot(made, 1, LOG)
    for name in ("train", "all"):
        steps.decode(begin(folder, "sets", made), 0, 1, name)
    return folder


def config(folder: Path, *more: str) -> RunConfig:
    uris = [f"slides.uri={folder}/slides", f"index.uri={folder}/index", "patches.mpp=[1.0]"]
    return load_config("", overrides=[*TRAINING, *uris, *more])


def begin(folder: Path, name: str, made: RunConfig) -> str:
    run = str(folder / name)
    prepare_run(run, made)
    snapshot = open_snapshot(f"{folder}/index")
    pin_index(run, IndexPin(index_uri=f"{folder}/index", snapshot_id=snapshot.manifest.snapshot_id))
    return run


def from_set(folder: Path, name: str, *more: str) -> RunConfig:
    return config(folder, f"patches.source={folder}/sets/patches/{name}/", *more)


def test_training_runs_from_a_patch_set_without_the_slides(folder: Path) -> None:
    run = begin(folder, "run", from_set(folder, "train"))
    (folder / "slides").rename(folder / "gone")
    try:
        run_worker(run)
    finally:
        (folder / "gone").rename(folder / "slides")
    done = json.loads(Path(run, RunLayout.TRAINING_DONE).read_text())
    assert done["num_steps"] == 3 and done["final_loss"] > 0
    assert done["models"]


def test_the_feed_is_pure_and_names_slides_of_the_set(folder: Path) -> None:
    run = begin(folder, "pure", from_set(folder, "train"))
    made, pin = load_run(run), IndexPin.from_json(Path(run, RunLayout.INDEX_PIN).read_bytes(), source="pin")
    feeds = [open_stream(made, pin, LOG) for _ in range(2)]
    (whole,) = feeds[0].source.batches([(5, range(24))])
    (part,) = feeds[1].source.batches([(5, [20, 1])])
    assert (part.pixels == whole.pixels[[20, 1]]).all()
    assert part.requests == (whole.requests[20], whole.requests[1])
    trained_on = {feeds[0].slide_name(request.slide) for request in whole.requests}
    assert trained_on <= {f"slide-{number}.svs" for number in range(4)} and len(trained_on) > 1
    for feed in feeds:
        feed.source.close()


def test_a_relative_set_is_named_whole_in_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run = begin(folder, "relative", config(folder, "patches.source=sets/patches/train"))
    assert load_run(run).patches.source.endswith(f"{folder}/sets/patches/train")


def test_a_dry_run_counts_the_set(folder: Path) -> None:
    figures = check_patches(from_set(folder, "train"), open_snapshot(f"{folder}/index"))
    manifest = json.loads((folder / "sets/patches/train/manifest.json").read_text())
    assert figures["num_patches"] == manifest["num_patches"] > 0 and figures["num_slides"] == 3


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("none", [], "no patch set at"),
        ("all", [], "1 of the 4 slides of .* are held out by the run: slide-"),
        ("train", ["patches.patch_px=64"], "are 32 px wide, not 64"),
        ("train", ["patches.mpp=[0.5, 1.0]"], "have 1 mpp; the run says that its teacher sees 0.5, 1"),
    ],
)
def test_a_set_that_does_not_fit_is_refused(folder: Path, name: str, more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_patches(from_set(folder, name, *more), open_snapshot(f"{folder}/index"))


def test_where_nothing_is_held_out_any_set_will_do(folder: Path) -> None:
    made = from_set(folder, "all", "patches.heldout.fraction=0")
    assert check_patches(made, open_snapshot(f"{folder}/index"))["num_slides"] == 4


def test_the_source_is_part_of_what_a_run_is() -> None:
    assert load_config("patches: {source: slides}").digest() == RunConfig().digest()
    assert load_config("patches: {source: s3://b/p}").digest() != RunConfig().digest()
