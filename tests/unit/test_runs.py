"""A run begins once: its configuration and its snapshot are what they were first."""

import shlex
from pathlib import Path

import pytest

from eosin.config import load_config
from eosin.errors import UserError
from eosin.layout import RunLayout
from eosin.records import IndexPin, LeaseRecord, load_record
from eosin.runs import load_pin, load_run, pin_index, plan_config, prepare_run, resolve
from eosin.storage import open_store


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    return str(tmp_path / "runs" / "first run ü")


def test_configuration_is_published_and_read_back(run_uri: str) -> None:
    config = prepare_run(run_uri, load_config("seed: 3\n"))
    assert load_run(run_uri) == config and "/indexes/slides-" in config.index.uri


def test_same_configuration_again_continues(run_uri: str) -> None:
    prepare_run(run_uri, load_config("seed: 3\n"))
    prepare_run(run_uri, load_config("seed: 3\nindex:\n  num_shards: 5\n"))


def test_missing_run_is_named(run_uri: str) -> None:
    with pytest.raises(UserError, match="no run at"):
        load_run(run_uri)


def test_first_pin_wins(run_uri: str) -> None:
    first = pin_index(run_uri, IndexPin(index_uri="s3://b/i", snapshot_id="one"))
    second = pin_index(run_uri, IndexPin(index_uri="s3://b/i", snapshot_id="two"))
    assert first == second == load_pin(run_uri) and second.snapshot_id == "one"


def test_missing_pin_says_what_to_run(run_uri: str) -> None:
    with pytest.raises(UserError) as caught:
        load_pin(run_uri)
    assert "eosin index" in caught.value.hint


@pytest.mark.parametrize(
    ("run", "slides", "index"),
    [
        ("s3://b/runs/a", "s3://b/slides/tcga/", "s3://b/indexes/tcga-"),
        ("s3://b/lab/runs/a", "s3://other", "s3://b/lab/indexes/other-"),
        ("s3://b/a", "/data/my slides", "s3://b/indexes/my-slides-"),
        ("/data/runs/a", "/data/slides", "/data/indexes/slides-"),
        ("/home/me/run1", "/home/me/slides", "/home/me/indexes/slides-"),
        ("s3://runs/a", "s3://other", "s3://runs/indexes/other-"),
        ("s3://b/team/a", "s3://other", "s3://b/team/indexes/other-"),
    ],
)
def test_index_lies_beside_the_runs_one_a_folder_of_slides(run: str, slides: str, index: str) -> None:
    config = load_config("", overrides=[f"slides.uri={slides}"])
    assert index in resolve(config, run).index.uri


def test_two_folders_of_slides_never_share_an_index() -> None:
    uris = {resolve(load_config("", overrides=[f"slides.uri=s3://{bucket}/slides"]), "s3://x/runs/a").index.uri
            for bucket in ("a", "b")}  # fmt: skip
    assert len(uris) == 2


def trained(run_uri: str) -> None:
    open_store(run_uri).put(RunLayout.checkpoint_marker(3), b"{}")


def test_speed_and_placement_of_a_begun_run_take_the_new_values(run_uri: str) -> None:
    prepare_run(run_uri, load_config("seed: 3\n"))
    trained(run_uri)
    faster = load_config("seed: 3\ntrain: {elastic: {workers_per_node: 3}}\n")
    planned = plan_config(run_uri, faster)
    assert planned.changes == ("train.elastic.workers_per_node: 1 → 3",) and not planned.renewed
    assert "train.elastic.workers_per_node: 1 → 3" in str(planned)
    prepare_run(run_uri, faster)
    assert load_run(run_uri).train.elastic.workers_per_node == 3
    prepare_run(run_uri, load_config("seed: 3\n"))
    assert load_run(run_uri).train.elastic.workers_per_node == 1


def test_every_key_that_steers_speed_or_placement_takes_effect(run_uri: str) -> None:
    prepare_run(run_uri, load_config(""))
    trained(run_uri)
    settings = [
        "cluster.namespace=lab", "index.num_shards=5", "patches.reader=stage", "train.parallel=fsdp",
        "train.log_every_steps=3", "train.keep_checkpoints=4", "evaluate.batch_size=9", "description=x",
        "patches.prefetch_batches=5", "train.compile=true", "train.snapshot_every_steps=7",
    ]  # fmt: skip
    wanted = load_config("", overrides=settings)
    prepare_run(run_uri, wanted)
    assert load_run(run_uri) == resolve(wanted, run_uri)


@pytest.mark.parametrize(
    "key", [RunLayout.checkpoint_marker(3), RunLayout.teacher_card("step-00000003"),
            RunLayout.TRAINING_DONE, RunLayout.metric("random-init", "heldout"),
            f"{RunLayout.variant('a')}/{RunLayout.checkpoint_marker(3)}"],
)  # fmt: skip
def test_other_configuration_of_a_run_with_results_is_refused_with_the_difference(
    run_uri: str, key: str
) -> None:
    prepare_run(run_uri, load_config("seed: 3\n"))
    open_store(run_uri).put(key, b"{}")
    with pytest.raises(UserError, match="seed: 3 → 4") as caught:
        prepare_run(run_uri, load_config("seed: 4\n"))
    assert load_run(run_uri).seed == 3 and f"eosin delete {shlex.quote(run_uri)}" in caught.value.hint


def test_a_run_without_anything_trained_begins_anew(run_uri: str) -> None:
    store = open_store(run_uri)
    prepare_run(run_uri, load_config("slides: {uri: /mistyped}\n"))
    pin_index(run_uri, IndexPin(index_uri="s3://b/i", snapshot_id="one"))
    store.put(RunLayout.patch_set_manifest("heldout"), b"{}")
    assert plan_config(run_uri, load_config("slides: {uri: /slides}\n")).renewed
    prepare_run(run_uri, load_config("slides: {uri: /slides}\n"))
    assert load_run(run_uri).slides.uri == "file:///slides"
    assert [info.key for info in store.list()] == [RunLayout.CONFIG]


def test_what_does_not_depend_on_the_change_stays(run_uri: str) -> None:
    store = open_store(run_uri)
    prepare_run(run_uri, load_config(""))
    pin_index(run_uri, IndexPin(index_uri="s3://b/i", snapshot_id="one"))
    store.put(RunLayout.patch_set_manifest("heldout"), b"{}")
    prepare_run(run_uri, load_config("train: {num_steps: 7}\n"))
    assert load_pin(run_uri).snapshot_id == "one"
    assert store.exists(RunLayout.patch_set_manifest("heldout"))


def test_a_world_of_the_plan_before_loses_its_lease(run_uri: str) -> None:
    store = open_store(run_uri)
    prepare_run(run_uri, load_config(""))
    mine = LeaseRecord(token="a", holder="me", taken_at="now")
    store.put(RunLayout.LEASE, mine.to_json())
    prepare_run(run_uri, load_config("cluster: {namespace: lab}\n"))
    assert load_record(LeaseRecord, store, RunLayout.LEASE) == mine
    prepare_run(run_uri, load_config("seed: 1\n"))
    found = load_record(LeaseRecord, store, RunLayout.LEASE)
    assert found is not None and found.token != "a"


def test_a_configuration_that_cannot_be_read_gives_way_while_nothing_is_trained(run_uri: str) -> None:
    store = open_store(run_uri)
    store.put(RunLayout.CONFIG, b"train: {no_such_key: 1}\n")
    with pytest.raises(UserError, match="no_such_key"):
        load_run(run_uri)
    prepare_run(run_uri, load_config("seed: 1\n"))
    assert load_run(run_uri).seed == 1
    store.put(RunLayout.CONFIG, b"train: {no_such_key: 1}\n")
    trained(run_uri)
    with pytest.raises(UserError, match="no_such_key"):
        prepare_run(run_uri, load_config("seed: 1\n"))
