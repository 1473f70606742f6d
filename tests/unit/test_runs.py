"""A run begins once: its configuration and its snapshot are what they were first."""

from __future__ import annotations

from pathlib import Path

import pytest

from eosin.config import load_config
from eosin.errors import UserError
from eosin.records import IndexPin
from eosin.runs import load_pin, load_run, pin_index, prepare_run, resolve


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    return str(tmp_path / "runs" / "first run ü")


def test_configuration_is_published_and_read_back(run_uri: str) -> None:
    config = prepare_run(run_uri, load_config("seed: 3\n"))
    assert load_run(run_uri) == config and "/indexes/slides-" in config.index.uri


def test_same_configuration_again_continues(run_uri: str) -> None:
    prepare_run(run_uri, load_config("seed: 3\n"))
    prepare_run(run_uri, load_config("seed: 3\nindex:\n  num_shards: 5\n"))


def test_other_configuration_is_refused_with_the_difference(run_uri: str) -> None:
    prepare_run(run_uri, load_config("seed: 3\n"))
    with pytest.raises(UserError, match="seed: 3 → 4"):
        prepare_run(run_uri, load_config("seed: 4\n"))
    assert load_run(run_uri).seed == 3


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
    ],
)
def test_index_lies_beside_the_runs_one_a_folder_of_slides(run: str, slides: str, index: str) -> None:
    config = load_config("", overrides=[f"slides.uri={slides}"])
    assert index in resolve(config, run).index.uri


def test_two_folders_of_slides_never_share_an_index() -> None:
    uris = {resolve(load_config("", overrides=[f"slides.uri=s3://{bucket}/slides"]), "s3://x/runs/a").index.uri
            for bucket in ("a", "b")}  # fmt: skip
    assert len(uris) == 2
