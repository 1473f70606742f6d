"""Ways of drawing patches, and DINOv3's backbones, on slides: alike in any world, exact on resume."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from eosin.config import RunConfig
from eosin.evaluation.curate import CurateRequest, curate
from eosin.evaluation.embed_index import EmbedRequest, embed_index
from eosin.index.snapshot import open_snapshot
from eosin.layout import RunLayout
from eosin.patches.sampling.sampler import Sampler
from eosin.records import IndexPin
from eosin.runs import pin_index, prepare_run
from eosin.training.worker import run_worker
from tests.support.evaluation import write_timm_network
from tests.support.indexing import LOG, config_for, index, make_slides
from tests.support.ranks import Leg, final_parameters, norm_difference, train_legs
from tests.support.training_run import STEP_DELAY_S, tiny_config

STEPS = 6
ROTARY = {
    "model": {
        "arch": "vit_small_plus_patch16_dinov3_qkvb",  # rotary positions, four storage tokens
        "arch_args": {"patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2},
    }
}
RANGE = {"mpp_range": [0.5, 1.4]}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of four slides, and clusters of its patches by a tiny network's features."""
    folder = tmp_path_factory.mktemp("material")
    index(config_for(make_slides(folder / "slides"), folder / "index"))
    settings = ("patch_px=48", "min_foreground=0.3")
    request = EmbedRequest(
        write_timm_network(folder), str(folder / "features"), str(folder / "index"), settings=settings
    )
    embed_index(request, 0, 1, LOG)
    curate(CurateRequest(str(folder / "features"), str(folder / "clusters"), (6, 2)), LOG)
    return folder


@pytest.fixture(scope="module")
def pin(material: Path) -> IndexPin:
    snapshot = open_snapshot(str(material / "index"))
    return IndexPin(index_uri=str(material / "index"), snapshot_id=snapshot.manifest.snapshot_id)


def config_of(material: Path, *methods: str, **train: Any) -> RunConfig:
    """Several methods at once; none: patches of one magnification for a plain ViT."""
    model = ROTARY if "storage tokens" in methods else {}
    tree = tiny_config(num_steps=STEPS, checkpoint_every_steps=2, **model, **train).model_dump(mode="json")
    tree["patches"] |= {"patch_px": 24, "mpp": [0.5], "min_foreground": 0.3, "heldout": {"fraction": 0}}
    if "continuous magnification" in methods:
        tree["patches"] |= RANGE
    if "curation" in methods:
        tree["patches"] |= {"curation": {"clusters": str(material / "clusters"), "max_oversampling": 50}}
    return RunConfig.model_validate(tree)


METHODS = ["continuous magnification", "curation", "storage tokens"]


@pytest.mark.parametrize("method", METHODS)
def test_a_world_that_grows_and_shrinks_ends_where_one_rank_does(
    method: str, material: Path, pin: IndexPin, tmp_path: Path
) -> None:
    config = config_of(material, method)
    alone = train_legs(config, tmp_path / "1", [Leg(1, STEPS)], pin)
    legs = [Leg(1, 2), Leg(2, 4, "fsdp" if method == "storage tokens" else "ddp"), Leg(1, STEPS)]
    difference = norm_difference(train_legs(config, tmp_path / "1-2-1", legs, pin), alone)
    print(f"{method}: {difference:.2e}")
    assert difference <= 1e-5


@pytest.mark.parametrize("method", METHODS[:2])
def test_the_methods_draw_otherwise(method: str, material: Path) -> None:
    snapshot, drawn = open_snapshot(str(material / "index")), []
    for config in (config_of(material), config_of(material, method)):
        sampler = Sampler(snapshot, config.patches, seed=config.seed, split="train")
        drawn.append(sampler.draw_batch(3, range(16)))
    assert not set(drawn[0]) & set(drawn[1])


def final_names_that_differ(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    assert ours.keys() == theirs.keys()
    return [name for name, value in ours.items() if not value.equal(theirs[name])]


def test_deterministic_mode_gives_all_methods_the_same_bits_in_two_worlds(
    material: Path, pin: IndexPin, tmp_path: Path
) -> None:
    config = config_of(material, *METHODS, deterministic=True)
    alone = train_legs(config, tmp_path / "1", [Leg(1, STEPS)], pin)
    changing = train_legs(config, tmp_path / "1-2-1", [Leg(1, 2), Leg(2, 4), Leg(1, STEPS)], pin)
    assert final_names_that_differ(alone, changing) == []


def test_killed_in_the_middle_all_methods_end_with_the_bits_of_the_undisturbed(
    material: Path, pin: IndexPin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL to a worker once a checkpoint is there; the next one goes on from it."""
    for name in ("undisturbed", "killed"):
        config = prepare_run(str(tmp_path / name), config_of(material, *METHODS))
        pin_index(str(tmp_path / name), pin)
    run_worker(str(tmp_path / "undisturbed"))
    kill_after(tmp_path / "killed", step=4)
    run_worker(str(tmp_path / "killed"))
    ended = [final_parameters(tmp_path / name, config, STEPS) for name in ("undisturbed", "killed")]
    assert final_names_that_differ(*ended) == []


def kill_after(run: Path, step: int) -> None:
    """Train in a process of its own, and kill it once the checkpoint of `step` is published."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", STEP_DELAY_S: "0.1"}
    worker = subprocess.Popen([sys.executable, "-c", SLOW_WORKER, str(run)], env=environment)
    try:
        marker = run / RunLayout.checkpoint_marker(step)
        deadline_s = time.monotonic() + 120
        while not marker.exists():
            assert worker.poll() is None and time.monotonic() < deadline_s, "it ended before it was killed"
            time.sleep(0.02)
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert not (run / RunLayout.TRAINING_DONE).exists()


SLOW_WORKER = """
import sys
from eosin.training.worker import run_worker
from tests.support.training_run import poison
poison()
run_worker(sys.argv[1])
"""
