"""The held-out patch set: the same patches whatever the sharding, whole or not there, and resumable."""

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eosin import steps
from eosin.config import RunConfig, load_config
from eosin.errors import PermanentError, UserError
from eosin.index.publish import publish_snapshot
from eosin.index.scan import scan_shard
from eosin.index.snapshot import open_snapshot
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.sets.decode import decode_set, shard_keys
from eosin.patches.sets.publish import contact_sheet, publish_manifest
from eosin.patches.sets.set_spec import open_decoding
from eosin.patches.sets.training_set import PatchSetSource
from eosin.records import IndexPin, PatchSetManifest
from eosin.runs import pin_index, prepare_run
from tests.support.patches import read_patch_set, write_slides

LOG = RunLog("test")


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decode")
    write_slides(folder / "slides", 4)
    settings = config(folder)
    scan_shard(settings, 0, 1, LOG)
    publish_snapshot(settings, 1, LOG)
    return folder


def config(folder: Path, *overrides: str) -> RunConfig:
    base = [f"slides.uri={folder}/slides", f"index.uri={folder}/index", "patches.patch_px=64",
            "patches.mpp=[0.5, 1.0]", "patches.heldout.num_patches=45", "augment.global_px=64",
            "augment.local_px=32"]  # fmt: skip
    return load_config("", overrides=[*base, *overrides])


def begin(folder: Path, run: Path, *overrides: str) -> str:
    prepare_run(str(run), config(folder, *overrides))
    snapshot = open_snapshot(f"{folder}/index")
    pin_index(str(run), IndexPin(index_uri=f"{folder}/index", snapshot_id=snapshot.manifest.snapshot_id))
    return str(run)


def decode(run: str, num_shards: int) -> PatchSetManifest:
    found = [decode_part(run, shard, num_shards) for shard in reversed(range(num_shards))][-1]
    assert found is not None
    return found


def decode_part(run: str, shard: int, num_shards: int) -> PatchSetManifest | None:
    return decode_set(open_decoding(run, "heldout", shard, num_shards), LOG)


def folder_of(run: str) -> Path:
    return Path(run, RunLayout.patch_set("heldout"))


def test_the_patches_do_not_depend_on_the_number_of_shards(indexed: Path, tmp_path: Path) -> None:
    sets = [decode(begin(indexed, tmp_path / f"run-{n}"), n) for n in (1, 4)]
    one, four = (list(read_patch_set(str(folder_of(str(tmp_path / f"run-{n}"))))[1]) for n in (1, 4))
    assert one == four and len(one) == 45
    assert [shard.num_patches for shard in sets[1].shards] == [11, 11, 11, 12]
    assert sets[0].slides == sets[1].slides and sets[0].num_patches == sets[1].num_patches == 45


def test_the_same_run_twice_gives_the_same_bytes(indexed: Path, tmp_path: Path) -> None:
    first, second = (decode(begin(indexed, tmp_path / name), 2) for name in ("a", "b"))
    assert first == second
    for shard in first.shards:
        data = [(folder_of(str(tmp_path / name)) / shard.key).read_bytes() for name in ("a", "b")]
        assert data[0] == data[1] and hashlib.sha256(data[0]).hexdigest() == shard.sha256


def test_patches_come_from_held_out_slides_and_say_where_from(indexed: Path, tmp_path: Path) -> None:
    run = begin(indexed, tmp_path / "run")
    manifest = decode(run, 1)
    snapshot = open_snapshot(f"{indexed}/index")
    train = Sampler(snapshot, config(indexed).patches, seed=0, split="train")
    assert not {snapshot.rows[int(i)].slide for i in train.slides} & set(manifest.slides)
    assert not manifest.notes and not manifest.rejected
    for row in read_patch_set(str(folder_of(run)))[1]:
        assert row.slide in manifest.slides and row.mpp in (0.5, 1.0) and row.split == "heldout"
        assert row.foreground >= 0.4 - 1e-6
        assert Image.open(io.BytesIO(row.image)).size == (64, 64)


def test_a_second_decode_writes_nothing(indexed: Path, tmp_path: Path) -> None:
    run = begin(indexed, tmp_path / "run")
    first = decode(run, 2)
    before = {path: path.stat().st_mtime_ns for path in folder_of(run).iterdir()}
    assert decode(run, 2) == first
    assert {path: path.stat().st_mtime_ns for path in folder_of(run).iterdir()} == before


def test_a_shard_deleted_under_its_marker_comes_back_the_same(indexed: Path, tmp_path: Path) -> None:
    run = begin(indexed, tmp_path / "run")
    decode(run, 2)
    lost = Path(run, RunLayout.patch_set_shard("heldout", 1, 2))
    before = lost.read_bytes()
    lost.unlink()
    decode(run, 2)
    assert lost.read_bytes() == before


def test_the_manifest_waits_for_every_shard(indexed: Path, tmp_path: Path) -> None:
    run = begin(indexed, tmp_path / "run")
    assert decode_part(run, 1, 3) is None
    job = open_decoding(run, "heldout", 0, 3)
    with pytest.raises(UserError, match="missing: 0, 2"):
        publish_manifest(job.store, "heldout", shard_keys("heldout", 3, job.config.patches.heldout), LOG)
    with pytest.raises(UserError, match=r"manifest\.json is not there"):
        read_patch_set(str(folder_of(run)))


def test_a_killed_decode_continues_and_ends_with_the_same_bytes(indexed: Path, tmp_path: Path) -> None:
    whole = decode(begin(indexed, tmp_path / "whole"), 2)
    run = begin(indexed, tmp_path / "killed")
    program = (
        "import sys\nfrom eosin.observability import RunLog\n"
        "from eosin.patches.sets.decode import decode_set\n"
        "from eosin.patches.sets.set_spec import open_decoding\n"
        "print('begun', flush=True)\n"
        "for n in range(2):\n"
        f"    decode_set(open_decoding({run!r}, 'heldout', n, 2), RunLog('test'))\n"
    )
    for delay_s in (0.0, 0.1, 0.3):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        time.sleep(delay_s)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert decode(run, 2) == whole


def test_one_patient_gives_a_set_from_all_slides_with_a_note(indexed: Path, tmp_path: Path) -> None:
    shutil.copytree(indexed / "slides", tmp_path / "slides")
    (tmp_path / "patients.csv").write_text(
        "slide,patient\n" + "".join(f"slide-{n}.svs,only\n" for n in range(4))
    )
    settings = config(tmp_path, f"slides.overrides={tmp_path}/patients.csv")
    scan_shard(settings, 0, 1, LOG)
    publish_snapshot(settings, 1, LOG)
    manifest = decode(begin(tmp_path, tmp_path / "run", f"slides.overrides={tmp_path}/patients.csv"), 1)
    assert len(manifest.slides) == 4
    assert "nothing is held out" in manifest.notes[0] and "one patient" in manifest.notes[0]


def test_patches_that_could_not_be_read_are_recorded(indexed: Path, tmp_path: Path) -> None:
    shutil.copytree(indexed / "slides", tmp_path / "slides")
    settings = config(tmp_path, "patches.heldout.fraction=0.6")
    scan_shard(settings, 0, 1, LOG)
    publish_snapshot(settings, 1, LOG)
    snapshot = open_snapshot(f"{tmp_path}/index")
    held_out = Sampler(snapshot, settings.patches, seed=0, split="heldout").slides
    victim = snapshot.rows[int(held_out[0])].slide
    assert len(held_out) > 1
    (tmp_path / "slides" / victim).unlink()
    manifest = decode(begin(tmp_path, tmp_path / "run", "patches.heldout.fraction=0.6"), 2)
    assert manifest.num_patches == 45 and victim not in manifest.slides
    assert {patch.slide for patch in manifest.rejected} == {victim}
    assert all(patch.reason.startswith("missing") for patch in manifest.rejected)


def test_damage_to_a_shard_is_named(indexed: Path, tmp_path: Path) -> None:
    run = begin(indexed, tmp_path / "run")
    manifest = decode(run, 1)
    shard = folder_of(run) / manifest.shards[0].key
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(PermanentError, match=r"00000-of-00001\.parquet is not the shard that was published"):
        list(read_patch_set(str(folder_of(run)))[1])
    shard.unlink()
    with pytest.raises(PermanentError, match="missing"):
        list(read_patch_set(str(folder_of(run)))[1])


@pytest.mark.parametrize(
    ("shard", "num_shards", "name"), [(2, 2, "heldout"), (-1, 2, "heldout"), (0, 1, "other")]
)
def test_a_shard_or_set_there_is_none_of(
    indexed: Path, tmp_path: Path, shard: int, num_shards: int, name: str
) -> None:
    run = begin(indexed, tmp_path / "run")
    with pytest.raises(UserError):
        steps.decode(run, shard, num_shards, name)


def test_more_shards_than_patches_leaves_some_empty(indexed: Path, tmp_path: Path) -> None:
    run = begin(indexed, tmp_path / "run", "patches.heldout.num_patches=3")
    manifest = decode(run, 5)
    assert manifest.num_patches == 3 and len(list(read_patch_set(str(folder_of(run)))[1])) == 3


def test_jpeg_sets_are_jpegs(indexed: Path, tmp_path: Path) -> None:
    run = begin(indexed, tmp_path / "run", "patches.heldout.encoding=jpeg", "patches.heldout.num_patches=4")
    assert decode(run, 1).encoding == "jpeg"
    assert all(
        Image.open(io.BytesIO(row.image)).format == "JPEG" for row in read_patch_set(str(folder_of(run)))[1]
    )


def test_the_contact_sheet_holds_every_patch_in_its_place(indexed: Path, tmp_path: Path) -> None:
    run = begin(indexed, tmp_path / "run", "patches.heldout.num_patches=10")
    decode(run, 1)
    published = Image.open(folder_of(run) / "contact-sheet.jpg")
    rows = list(read_patch_set(str(folder_of(run)))[1])
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(rows, columns=4, cell_px=64))), int)
    assert published.size[0] > 900
    for place, row in enumerate(rows):
        top, left = 6 + place // 4 * (64 + 24 + 6), 6 + place % 4 * (64 + 6)
        patch = np.asarray(Image.open(io.BytesIO(row.image)), int)
        assert np.abs(sheet[top : top + 64, left : left + 64] - patch).mean() < 12


def test_training_from_a_patch_set_draws_its_patches_purely(indexed: Path, tmp_path: Path) -> None:
    run = begin(indexed, tmp_path / "run")
    decode(run, 3)
    rows = {(row.slide, row.x_px, row.y_px, row.mpp): row for row in read_patch_set(str(folder_of(run)))[1]}
    source = PatchSetSource(str(folder_of(run)), seed=4, patch_px=64, directory=tmp_path)
    (whole,) = source.batches([(9, range(200))])
    (part,) = source.batches([(9, [150, 3])])
    assert np.array_equal(whole.pixels[[150, 3]], part.pixels)
    drawn = set()
    for pixels, request in zip(whole.pixels, whole.requests, strict=True):
        key = (source.manifest.slides[request.slide], request.x_px, request.y_px, request.mpp)
        assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(rows[key].image))))
        drawn.add(key)
    assert len(drawn) > 35
    source.close()
    with pytest.raises(UserError, match="64 px"):
        PatchSetSource(str(folder_of(run)), seed=4, patch_px=96)
