"""A decoder that takes its process along: the patch is replaced, recorded, and everything else goes on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from eosin import steps
from eosin.config import RunConfig, load_config
from eosin.config.patches import PatchesConfig
from eosin.errors import TransientError
from eosin.index.publish import publish_snapshot
from eosin.index.scan import scan_shard
from eosin.index.snapshot import Snapshot, open_snapshot
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.patches.decoding.parent import DecoderPool
from eosin.patches.decoding.quarantine import DecoderDied, Quarantine
from eosin.patches.reading.read_plan import plan_read
from eosin.patches.reading.tables import TileTables
from eosin.patches.request import PatchBatch, PatchRequest
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.stream import MAX_ATTEMPTS, PatchStream, open_reader
from eosin.records import IndexPin, PatchSetManifest
from eosin.records.run import QuarantinedPatch
from eosin.runs import pin_index, prepare_run
from eosin.storage import open_store
from eosin.training.worker import run_worker
from tests.support import crashing
from tests.support.patches import index_slides, write_slides

LOG = RunLog("test")
WANTED = [(step, range(6)) for step in range(2)]
TRAINING = [
    "patches.patch_px=32", "patches.mpp=[0.5]", "patches.decoder=nvimgcodec",
    "patches.sets.drawn={kind: sampled, num_patches: 48}",
    "augment.global_px=32", "augment.local_px=16", "augment.num_local=1", "model.arch=vit_tiny_patch16_224",
    "model.arch_args={patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}",
    "model.dino_head={num_prototypes: 64, hidden_dim: 32, bottleneck_dim: 16}",
    "train.num_steps=2", "train.batch_size=4", "train.num_microbatches=2", "train.precision=float32",
    "train.checkpoint_every_steps=2", "train.export_every_steps=2", "train.log_every_steps=1",
    "train.optimizer.warmup_steps=1", "patches.sets.tiles={mpp: 1.0, patches_per_shard: 20}",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three indexed slides."""
    folder = tmp_path_factory.mktemp("crash")
    write_slides(folder / "slides", 3)
    scan_shard(config(folder), 0, 1, LOG)
    publish_snapshot(config(folder), 1, LOG)
    return folder


@pytest.fixture(scope="module")
def snapshot(folder: Path) -> Snapshot:
    return open_snapshot(f"{folder}/index")


def config(folder: Path) -> RunConfig:
    uris = [f"slides.uri={folder}/slides", f"index.uri={folder}/index"]
    return load_config("", overrides=[*TRAINING, *uris])


def begin(folder: Path, name: str) -> str:
    run = str(folder / name)
    prepare_run(run, config(folder))
    snapshot = open_snapshot(f"{folder}/index")
    pin_index(run, IndexPin(index_uri=f"{folder}/index", snapshot_id=snapshot.manifest.snapshot_id))
    return run


def read(snapshot: Snapshot, quarantine: Quarantine | None = None, **changes: object) -> list[PatchBatch]:
    values = {"patch_px": 96, "mpp": (0.25,), "decoder": "nvimgcodec", "tile_cache_bytes": 0, **changes}
    sampler = Sampler(snapshot, PatchesConfig.model_validate(values), seed=4)
    with PatchStream(sampler, LOG, num_threads=2, quarantine=quarantine) as stream:
        return list(stream.batches(WANTED))


def expected(snapshot: Snapshot) -> list[PatchRequest]:
    """Of each sample the first draw that touches no chosen tile, by a plain look at the tiles' bytes."""
    sampler = Sampler(snapshot, PatchesConfig(patch_px=96, mpp=(0.25,)), seed=4)
    tables, slides = TileTables(snapshot), open_store(snapshot.slides_uri)

    def dies(request: PatchRequest) -> bool:
        tiles = plan_read(request, snapshot.rows[request.slide].header, 96, 0.1, 1).tiles
        data = slides.get(snapshot.rows[request.slide].slide)
        places = tables.locate(tiles)
        return any(crashing.is_chosen(data[at.offset : at.offset + at.size_bytes]) for at in places)

    def first(step: int, index: int) -> PatchRequest:
        draws = (sampler.draw(step, index, attempt) for attempt in range(MAX_ATTEMPTS))
        return next(draw for draw in draws if not dies(draw))

    return [first(step, index) for step, indices in WANTED for index in indices]


def requests_of(batches: list[PatchBatch]) -> list[PatchRequest]:
    return [request for batch in batches for request in batch.requests]


def records_in(run: str) -> set[str]:
    return {info.key for info in open_store(run).list(RunLayout.QUARANTINE)}


def test_a_patch_that_kills_the_decoder_is_replaced_by_its_next_draw(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashing.install(monkeypatch)
    run = open_store(str(tmp_path / "run"))
    batches = read(snapshot, Quarantine(run, snapshot))
    found = requests_of(batches)
    assert found == expected(snapshot)
    replaced = sum(request.attempt for request in found)
    assert replaced >= 2
    records = [QuarantinedPatch.from_json(run.get(info.key), source="") for info in run.list("quarantine/")]
    assert len(records) == replaced
    assert {(record.signal, record.decoder) for record in records} == {("SIGSEGV", "nvimgcodec")}
    assert {record.slide for record in records} <= {row.slide for row in snapshot.rows}
    plain = read(snapshot, decoder="cpu")
    for ours, theirs in zip(batches, plain, strict=True):
        for place, request in enumerate(ours.requests):
            if not request.attempt:
                assert np.array_equal(ours.pixels[place], theirs.pixels[place])


def test_the_list_decides_though_the_decoder_is_well_again(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashing.install(monkeypatch)
    run = open_store(str(tmp_path / "run"))
    first = read(snapshot, Quarantine(run, snapshot))
    monkeypatch.setenv(crashing.CRASH, "")
    again, fresh = read(snapshot, Quarantine(run, snapshot)), read(snapshot)
    assert requests_of(again) == requests_of(first) != requests_of(fresh)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, again, strict=True))


def test_a_crash_that_does_not_come_back_costs_no_patch(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = tmp_path / "once"
    once.touch()
    crashing.install(monkeypatch, f"segv {once}")
    quarantine = Quarantine(None, snapshot)
    found = requests_of(read(snapshot, quarantine))
    assert not once.exists() and not len(quarantine) and not any(request.attempt for request in found)


def test_a_hang_is_ended_and_recorded(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashing.install(monkeypatch, "hang")
    run = open_store(str(tmp_path / "run"))
    sampler = Sampler(
        snapshot,
        PatchesConfig(patch_px=96, mpp=(0.25,), decoder="nvimgcodec", decoder_timeout_s=1.5),
        seed=4,
    )
    wanted = next(request for request in expected(snapshot) if request.attempt)
    with PatchStream(sampler, LOG, quarantine=Quarantine(run, snapshot)) as stream:
        ((request,),) = (batch.requests for batch in stream.batches([(wanted.step, [wanted.index])]))
    assert request == wanted
    record = QuarantinedPatch.from_json(run.get(next(iter(records_in(run.uri)))), source="")
    assert (record.reason, record.signal) == ("decoder-hang", "no answer in 1.5 s")


def test_a_process_killed_from_outside_is_no_fault_of_the_patch(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = tmp_path / "once"
    once.touch()
    crashing.install(monkeypatch, f"kill {once}")
    quarantine = Quarantine(None, snapshot)
    assert not any(request.attempt for request in requests_of(read(snapshot, quarantine)))
    assert not once.exists()
    monkeypatch.setenv(crashing.CRASH, "kill")
    with pytest.raises(TransientError, match="SIGKILL 3 times"):
        read(snapshot, quarantine)
    assert not len(quarantine)


def test_training_goes_on_and_a_second_time_is_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashing.install(monkeypatch)
    runs = [begin(folder, name) for name in ("first", "second", "well")]
    run_worker(runs[0])
    run_worker(runs[1])
    shutil.copytree(Path(runs[0], "quarantine"), Path(runs[2], "quarantine"))
    monkeypatch.setenv(crashing.CRASH, "")
    run_worker(runs[2])
    assert records_in(runs[0]) and records_in(runs[0]) == records_in(runs[1])
    losses = [json.loads(Path(run, RunLayout.TRAINING_DONE).read_text())["final_loss"] for run in runs]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("name", ["tiles", "drawn"])
def test_decode_goes_on_and_a_second_time_gives_the_same_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    crashing.install(monkeypatch)

    def decode(run: str) -> PatchSetManifest:
        manifest = steps.decode(run, 0, 1, name)
        assert manifest is not None
        return manifest

    runs = [begin(folder, f"decode-{name}-{number}") for number in range(3)]
    manifests = [decode(run) for run in runs[:2]]
    shutil.copytree(Path(runs[0], "quarantine"), Path(runs[2], "quarantine"))
    monkeypatch.setenv(crashing.CRASH, "")
    assert manifests[0] == manifests[1] == decode(runs[2])
    assert {patch.reason for patch in manifests[0].rejected} == {"decoder-crash: nvimgcodec: SIGSEGV"}
    if name == "drawn":
        assert manifests[0].num_patches == 48


def test_a_worker_that_cannot_start_is_no_crash_of_a_patch() -> None:
    pool = DecoderPool("none", "tests.support.crashing:there_is_none", timeout_s=5)
    with pytest.raises(Exception, match="cannot start: AttributeError"):
        pool.run([b""])


def test_cucim_dies_of_a_deflate_tiff_and_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cucim")
    slides = write_slides(tmp_path / "slides", 1, compression="deflate", predictor=True)
    jpeg = write_slides(tmp_path / "jpeg", 1)
    snapshot = index_slides(slides, tmp_path / "index")
    monkeypatch.setattr("eosin.patches.reading.reader.cucim_is_safe", lambda header: True)
    config = PatchesConfig(
        patch_px=96, mpp=(0.25,), decoder="cucim", reader="stage", stage_dir=str(tmp_path / "stage")
    )
    sampler = Sampler(snapshot, config, seed=0)
    with open_reader(snapshot, config) as reader:
        (died,) = reader.read([sampler.draw(0, 0)])
    assert isinstance(died, DecoderDied) and died.signal == "SIGSEGV"
    safe = index_slides(jpeg, tmp_path / "safe")
    with open_reader(safe, config) as reader:
        (patch,) = reader.read([Sampler(safe, config, seed=0).draw(0, 0)])
    assert not isinstance(patch, Exception) and patch.shape == (96, 96, 3)
