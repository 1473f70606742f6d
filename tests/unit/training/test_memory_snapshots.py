"""Snapshots in shared memory: whole or skipped, bounded, and never another run's."""

import os
import time
from pathlib import Path

import pytest
import torch

from eosin.errors import PermanentError, TransientError, UserError
from eosin.layout import RunLayout, model_name
from eosin.observability import RunLog
from eosin.storage import open_store
from eosin.training.checkpoints import memory as memory_module
from eosin.training.checkpoints import shm
from eosin.training.checkpoints.lease import known_secret, run_secret
from eosin.training.checkpoints.memory import Memory, is_possible, room_problem
from eosin.training.checkpoints.shm import SHM_DIR, Piece, ShmFolder, sweep
from eosin.training.checkpoints.state import TrainingState, flatten, unflatten
from eosin.training.resume import Bounds, bounds, choose, load_held
from tests.support.training_run import tiny_config

WORLD, OTHER = "a" * 32, "b" * 32
LIMITS = Bounds(durable_step=0, before_step=1000)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShmFolder:
    monkeypatch.setenv(SHM_DIR, str(tmp_path))
    found = ShmFolder.of_run("the run's secret")
    found.path.mkdir()
    return found


def piece(step: int, *, world: str = WORLD, index: int = 0, num_pieces: int = 1, digest: str = "d") -> Piece:
    return Piece(step=step, world=world, index=index, num_pieces=num_pieces, config_digest=digest)


def parts(step: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    names = ("backbone.vit.norm/odd name", "head.weight")
    return {part: {name: torch.randn(7, 5, generator=generator) for name in names} for part in ("a", "b")}


def keep(folder: ShmFolder, *kept: Piece) -> list[Piece]:
    return [folder.write(one, flatten(parts(one.step))) for one in kept]


def test_what_was_kept_comes_back_bit_by_bit(folder: ShmFolder) -> None:
    (kept,) = keep(folder, piece(12))
    (found,) = folder.pieces()
    assert found == kept
    theirs = unflatten(folder.load(found))
    assert theirs.keys() == parts(12).keys()
    assert all(torch.equal(theirs[p][n], t) for p, named in parts(12).items() for n, t in named.items())


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_piece_is_noticed_discarded_and_the_one_before_is_chosen(
    folder: ShmFolder, damage: str
) -> None:
    _, newest = keep(folder, piece(10), piece(20))
    path = folder.file(newest)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-9])
    with pytest.raises(PermanentError, match=r"damaged|cannot be read"):
        folder.load(newest)
    choice = choose([folder.pieces()], LIMITS, "d")
    assert choice is not None and choice.step == 20
    assert load_held(folder, choice, 0, RunLog("test")) is None
    again = choose([folder.pieces()], LIMITS, "d")
    assert again is not None and again.step == 10
    assert load_held(folder, again, 0, RunLog("test")) is not None


def test_a_piece_without_its_marker_does_not_exist(folder: ShmFolder) -> None:
    (kept,) = keep(folder, piece(10))
    (folder.path / f"{kept.name}.json").unlink()
    (folder.path / "garbage.json").write_text("{")
    (folder.path / f"{piece(11).name}.json").write_bytes(kept.to_json())  # a marker of another name
    assert folder.pieces() == []


def test_only_the_newest_written_are_kept_even_where_a_lost_world_was_further(folder: ShmFolder) -> None:
    for one in (piece(500, world=OTHER), piece(300), piece(310)):
        keep(folder, one)
        folder.prune(one.kept)
    assert [found.step for found in folder.pieces()] == [310, 300]
    assert sorted(path.suffix for path in folder.path.iterdir()) == [".json", ".json", *[".safetensors"] * 2]


def test_what_a_killed_process_was_writing_is_swept_and_what_a_living_one_writes_is_not(
    folder: ShmFolder,
) -> None:
    torn, living = folder.path / "x.999999999.part", folder.path / f"y.{os.getpid()}.part"
    torn.touch()
    living.touch()
    folder.prune(2)
    assert not torn.exists() and living.exists()


def test_no_room_is_a_clear_error_and_spares_what_is_there(
    folder: ShmFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(folder, piece(10))

    class Full:
        f_bavail, f_bfree, f_blocks, f_frsize = 1, 1, 100, 100

    monkeypatch.setattr("os.statvfs", lambda path: Full)
    with pytest.raises(TransientError, match="MiB needed"):
        keep(folder, piece(20))
    assert [found.step for found in folder.pieces()] == [10]
    assert not list(folder.path.glob("*.part"))


def test_too_small_a_memory_is_refused_with_the_arithmetic_where_it_is_demanded(
    folder: ShmFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert room_problem(folder, piece(0), 1000) == ""
    monkeypatch.setattr(memory_module, "_cgroup_room_bytes", lambda: 5 * 2**20)
    demanding = tiny_config(elastic={"memory_snapshots": "on"})
    with pytest.raises(UserError, match=r"need 6 MiB .*2 MiB × 3 copies.* there are 5 MiB"):
        is_possible(demanding, folder, piece(0), 2 * 2**20, RunLog("test"))
    assert not is_possible(tiny_config(), folder, piece(0), 2 * 2**20, RunLog("test"))
    assert is_possible(tiny_config(), folder, piece(0), 2**20, RunLog("test"))


def test_limit_of_the_container_counts(tmp_path: Path) -> None:
    assert memory_module._cgroup_room_bytes(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_module._cgroup_room_bytes(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 300\nfile 9000\nshmem 100\nslab 5\n")
    assert memory_module._cgroup_room_bytes(tmp_path) == 600


@pytest.mark.parametrize(
    ("held", "step", "holders"),
    [
        ([[piece(10)], [piece(20)]], 20, (1,)),
        ([[], [piece(20)], [piece(20)]], 20, (1,)),
        ([[piece(20, index=0, num_pieces=2)], [piece(10)]], 10, (1,)),
        ([[piece(20, index=0, num_pieces=2)], [piece(20, index=1, num_pieces=2)]], 20, (0, 1)),
        ([[piece(20, index=0, num_pieces=2), piece(20, index=1, num_pieces=2)], []], 20, (0, 0)),
        ([[piece(20, index=0, num_pieces=2)], [piece(20, index=1, num_pieces=2, world=OTHER)]], None, ()),
        ([[piece(20, index=0, num_pieces=2)], [piece(20, index=1, num_pieces=3)]], None, ()),
        ([[piece(20, digest="another configuration")]], None, ()),
        ([[piece(0)]], None, ()),
        ([[], []], None, ()),
    ],
)
def test_the_newest_that_is_whole_somewhere_is_chosen(
    held: list[list[Piece]], step: int | None, holders: tuple[int, ...]
) -> None:
    choice = choose(held, LIMITS, "d")
    assert (choice and choice.step) == step
    assert (choice.holders if choice else ()) == holders


def test_memory_older_than_the_bucket_or_beyond_a_missing_teacher_is_not_chosen() -> None:
    held = [[piece(10), piece(20), piece(30)]]
    assert choose(held, Bounds(durable_step=31, before_step=99), "d") is None
    chosen = choose(held, Bounds(durable_step=10, before_step=30), "d")
    assert chosen is not None and chosen.step == 20


def test_bounds_are_the_newest_checkpoint_and_the_first_later_teacher_that_is_missing(
    tmp_path: Path,
) -> None:
    store, config = open_store(str(tmp_path)), tiny_config(num_steps=40)
    models = [model_name(step) for step in (10, 20, 30, 40)]
    assert bounds(store, config, models) == Bounds(0, 10)
    store.put(RunLayout.checkpoint_marker(20), b"{}")
    assert bounds(store, config, models) == Bounds(20, 30)
    store.put(RunLayout.teacher_card(model_name(30)), b"{}")
    assert bounds(store, config, models) == Bounds(20, 40)


def test_a_run_begun_anew_gets_another_folder(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert known_secret(store) is None
    first = run_secret(store)
    assert run_secret(store) == known_secret(store) == first
    store.delete([RunLayout.SECRET])
    assert ShmFolder.of_run(run_secret(store)).path != ShmFolder.of_run(first).path


def test_folders_of_dead_runs_are_swept_once_old_and_held_ones_never(folder: ShmFolder) -> None:
    held = folder.open()
    dead = ShmFolder.of_run("another")
    dead.path.mkdir()
    foreign = folder.path.parent / "not-ours"
    foreign.mkdir()
    assert sweep(folder.path.parent) == []
    old_s = time.time() - 2 * 24 * 3600
    for path in (folder.path, dead.path, foreign):
        os.utime(path, (old_s, old_s))
    assert sweep(folder.path.parent) == [dead.path]
    os.close(held)
    os.utime(folder.path, (old_s, old_s))
    assert sweep(folder.path.parent) == [folder.path]
    assert foreign.exists()


def test_folder_is_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHM_DIR, str(tmp_path))
    found = ShmFolder.of_run("secret")
    os.close(found.open())
    assert found.path.stat().st_mode & 0o777 == 0o700
    assert "secret" not in found.path.name


def test_memory_keeps_what_it_is_offered_and_forgets_at_the_end(folder: ShmFolder) -> None:
    kept = Memory(folder, piece(0), RunLog("test"))
    for step in (1, 2, 3):
        kept.offer(TrainingState(step, 0.5, parts(step)))
    kept.close()
    assert [(found.step, found.loss) for found in folder.pieces()] == [(3, 0.5), (2, 0.5)]
    Memory(folder, piece(0), RunLog("test")).close(forget=True)
    assert not folder.path.exists()


def test_memory_that_cannot_keep_says_so_once_and_goes_on(
    folder: ShmFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shm, "save_file", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    kept = Memory(folder, piece(0), RunLog("test"))
    for step in (1, 2):
        kept.offer(TrainingState(step, None, parts(step)))
    kept.close()
    assert capsys.readouterr().err.count("no space left") == 1
