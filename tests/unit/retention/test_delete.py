"""`eosin delete` removes what one run published, when told to, and nothing else."""

import os
import re
import time
from pathlib import Path

import pytest

from eosin.config import dump_config, load_config
from eosin.errors import UserError
from eosin.layout import RegistryLayout, RunLayout
from eosin.records import RegisteredModel
from eosin.registry.entries import added
from eosin.retention.delete import delete_run
from eosin.storage import Store, open_store

KEYS = (
    RunLayout.CONFIG, RunLayout.INDEX_PIN, RunLayout.LEASE, RunLayout.checkpoint_part(3, "student"),
    RunLayout.checkpoint_marker(3), RunLayout.teacher_card("step-00000003"), RunLayout.metric("m", "t"),
    RunLayout.log("train", "1"), RunLayout.patch_set_manifest("heldout"), RunLayout.tensorboard("events.1"),
    f"{RunLayout.variant('a')}/{RunLayout.CONFIG}", f"{RunLayout.variant('a')}/{RunLayout.LEASE}",
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "runs" / "a"))
    for key in KEYS:
        store.put(key, b"x")
    store.put(RunLayout.CONFIG, dump_config(load_config("")).encode())
    age(tmp_path, 3600)
    return store


def age(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def keys(store: Store) -> set[str]:
    return {info.key for info in store.list()}


def test_it_lists_and_deletes_nothing_unasked(run: Store) -> None:
    result = delete_run(run.uri)
    assert (result.deleted, result.num_objects) == (False, len(KEYS)) and keys(run) == set(KEYS)
    assert f"eosin delete {run.uri} --yes" in str(result)


def test_everything_of_the_run_goes_and_nothing_of_others(run: Store, tmp_path: Path) -> None:
    other = open_store(str(tmp_path / "runs" / "b"))
    other.put(RunLayout.CONFIG, b"seed: 1\n")
    run.put("my notes.txt", b"mine")
    run.put("slides/a.svs", b"mine")
    age(tmp_path, 3600)
    result = delete_run(run.uri, delete=True)
    assert set(result.kept) == {"my notes.txt", "slides/a.svs"} == keys(run)
    assert keys(other) == {RunLayout.CONFIG}


@pytest.mark.parametrize(
    ("place", "hint"),
    [("", "runs in it: .*runs/a"), ("runs", "runs in it: .*runs/a"), ("runs/none", "check the URI"),
     ("runs/a/checkpoints", "part of the run .*runs/a,"), ("runs/a/checkpoints/step-00000003", "part of")],
)  # fmt: skip
def test_what_is_no_run_is_refused(run: Store, tmp_path: Path, place: str, hint: str) -> None:
    with pytest.raises(UserError, match="there is no run at") as caught:
        delete_run(f"file://{tmp_path}/{place}".rstrip("/"), delete=True, force=True)
    assert re.search(hint, caught.value.hint) and keys(run) == set(KEYS)


def test_a_whole_bucket_is_refused(bucket_uri: str) -> None:
    bucket = bucket_uri.split("/", 3)
    root = "/".join(bucket[:3])
    open_store(root).put(RunLayout.CONFIG, b"seed: 1\n")
    try:
        with pytest.raises(UserError, match="whole bucket"):
            delete_run(root, delete=True)
    finally:
        open_store(root).delete([RunLayout.CONFIG])


def test_a_run_that_may_be_at_work_is_refused_unless_asked(run: Store) -> None:
    run.put(RunLayout.log("train", "2"), b"{}")
    with pytest.raises(UserError, match="may be at work"):
        delete_run(run.uri, delete=True)
    assert keys(run) > set(KEYS)
    delete_run(run.uri, delete=True, force=True)
    assert not keys(run)


def test_a_run_that_has_just_ended_goes(run: Store) -> None:
    run.put(RunLayout.SUMMARY_JSON, b"{}")
    delete_run(run.uri, delete=True)
    assert not keys(run)


def test_a_run_whose_model_a_registry_knows_is_refused(run: Store, tmp_path: Path) -> None:
    model = RegisteredModel(
        version=1, model="step-00000003", teacher=f"{run.uri}/teachers/step-00000003", run=run.uri,
        snapshot_id="one", index_uri="i", weights_sha256="0" * 64,
    )  # fmt: skip
    registry = open_store(str(tmp_path / "registry"))
    registry.put(RegistryLayout.entry("he"), added(None, "he", model, ("test",)).to_json())
    with pytest.raises(UserError, match="version 1 of he"):
        delete_run(run.uri, delete=True, registries=[registry.uri])


class Killed(Exception):
    pass


def test_killed_anywhere_nothing_looks_whole_and_the_same_call_goes_on(
    run: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, whole = type(run), {RunLayout.checkpoint_marker(3), RunLayout.teacher_card("step-00000003")}
    delete = kind.delete

    for calls in (1, 2):
        left = [calls]

        def dying(self: Store, gone: list[str], left: list[int] = left) -> None:
            if not left[0]:
                raise Killed
            left[0] -= 1
            delete(self, gone)

        monkeypatch.setattr(kind, "delete", dying)
        with pytest.raises(Killed):
            delete_run(run.uri, delete=True, force=True)
        assert RunLayout.CONFIG in keys(run) and not whole & keys(run)
    monkeypatch.setattr(kind, "delete", delete)
    delete_run(run.uri, delete=True, force=True)
    assert not keys(run)
