"""The configuration: what it refuses, and how it says so."""

from __future__ import annotations

import pytest

from eosin.config import RunConfig, difference, dump_config, load_config
from eosin.errors import UserError


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(text, source="my.yaml", overrides=overrides)
    return caught.value.message


def test_defaults_survive_a_dump_and_a_load() -> None:
    assert load_config(dump_config(RunConfig())) == RunConfig()


def test_empty_file_is_the_defaults() -> None:
    assert load_config("") == RunConfig()


def test_unknown_key_names_line_and_nearest_key() -> None:
    assert refused("seed: 1\ntrain:\n  num_steps: 3\n  batch_sise: 64\n") == (
        "my.yaml:4: unknown key train.batch_sise; did you mean train.batch_size?"
    )


def test_unknown_section_names_the_nearest_section() -> None:
    assert "did you mean patches?" in refused("patchs:\n  patch_px: 3\n")


def test_key_in_the_wrong_section_is_found_in_the_right_one() -> None:
    assert "did you mean train.optimizer.warmup_steps?" in refused("model:\n  warmup_steps: 2\n")


def test_a_mistake_in_an_override_is_not_blamed_on_the_file() -> None:
    text = "train:\n  num_steps: 3\n"
    assert refused(text, "train.num_setps=4") == (
        "override 'train.num_setps=4': unknown key train.num_setps; did you mean train.num_steps?"
    )
    assert "override 'train.num_steps=many': train.num_steps" in refused(text, "train.num_steps=many")
    assert refused(text, "train=7") == "override 'train=7': train is a section of keys, not 7"
    assert refused("train:\n  num_steps: x\n", "train.batch_size=8").startswith("my.yaml:2: train.num_steps")


def test_a_section_whose_keys_are_all_commented_out_is_named() -> None:
    assert refused("train:\n  # num_steps: 3\n") == "my.yaml:1: train is a section of keys, not None"


def test_every_mistake_is_reported_at_once() -> None:
    message = refused("train:\n  num_steps: none\npatches:\n  min_foreground: 2\n")
    assert "my.yaml:2: train.num_steps" in message and "my.yaml:4: patches.min_foreground" in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [1", "is not YAML: line"),
        ("- 1\n- 2\n", "must be a mapping"),
        ("train: 7\n", "train"),
        ("train:\n  batch_size: 33\n", "33 = 32 × 1 + 1"),
        ("patches:\n  mpp: [0.5, 1.0]\n  mpp_weights: [1.0]\n", "mpp_weights has 1 entries, mpp has 2"),
        ("patches:\n  mpp: []\n", "at least one value"),
        ("model:\n  arch_args: {patch_size: 14}\naugment:\n  local_px: 96\n", "96 = 6 × 14 + 12"),
        ("train:\n  elastic: {min_nodes: 3, max_nodes: 2}\n", "min_nodes exceeds"),
        ("evaluate:\n  tasks: [{kind: unsupervised}, {kind: unsupervised}]\n", "share a name: heldout"),
    ],
)
def test_impossible_configuration_is_refused_with_the_arithmetic(text: str, part: str) -> None:
    assert part in refused(text)


def test_overrides_come_last_and_are_parsed_as_yaml() -> None:
    config = load_config(
        "train:\n  num_steps: 5\n",
        overrides=["train.num_steps=9", "patches.mpp=[0.5, 1]", "index.uri=s3://b/a=b"],
    )
    assert (config.train.num_steps, config.patches.mpp, config.index.uri) == (9, (0.5, 1.0), "s3://b/a=b")


@pytest.mark.parametrize("override", ["train.num_steps", "=3", "train..x=1", "seed.deeper=1", "seed=[1"])
def test_malformed_override_is_named(override: str) -> None:
    assert repr(override) in refused("seed: 3\n", override)


def test_unknown_override_names_the_nearest_key() -> None:
    assert "did you mean train.num_steps?" in refused("", "train.num_step=3")


@pytest.mark.parametrize(
    ("written", "meant"), [("on", "on"), ("off", "off"), ("auto", "auto"), ('"off"', "off")]
)
def test_a_switch_is_what_is_written_though_yaml_reads_a_truth_value(written: str, meant: str) -> None:
    config = load_config("recipe: demo", overrides=[f"train.elastic.memory_snapshots={written}"])
    assert config.train.elastic.memory_snapshots == meant
    assert load_config(dump_config(config)) == config


def test_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().seed = 3  # type: ignore[misc]


def test_digest_ignores_speed_and_placement_but_not_science() -> None:
    base = RunConfig().digest()
    same = load_config(
        "", overrides=["index.num_shards=7", "cluster.namespace=other", "patches.reader=stage"]
    )
    assert same.digest() == base
    assert load_config("", overrides=["seed=1"]).digest() != base
    assert load_config("", overrides=["augment.num_local=4"]).digest() != base
    assert load_config("", overrides=["model.arch_args={depth: 2}"]).digest() != base
    assert load_config("", overrides=["evaluate.checkpoints=last"]).digest() == base


def test_a_run_goes_on_under_an_eosin_that_knows_more_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "train: {num_steps: 7}\nmodel: {arch_args: {depth: 2}}\n"
    before = load_config(text).digest()
    identity = RunConfig.identity
    monkeypatch.setattr(RunConfig, "identity", lambda self: {**identity(self), "later": {"key": 1}})
    assert load_config(text).digest() == before


def test_difference_names_each_leaf() -> None:
    lines = difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4})
    assert lines == ["a.c: 2 → 3", "d: None → 4"]
