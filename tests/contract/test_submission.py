"""Checks of a submission against a bucket, and the recipe file that goes into it."""

from __future__ import annotations

from pathlib import Path

import pytest

from eosin import steps
from eosin.errors import UserError
from eosin.layout import RunLayout
from eosin.storage import open_store
from eosin.submission import check_submission


@pytest.fixture
def given(bucket_uri: str) -> dict[str, str]:
    open_store(f"{bucket_uri}/slides").put("a.svs", b"never opened")
    return {"run": f"{bucket_uri}/runs/a", "slides": f"{bucket_uri}/slides"}


def test_a_recipe_file_travels_beside_the_run(given: dict[str, str], bucket_uri: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("recipe: mine\ntrain: {num_steps: 77, optimizer: {warmup_steps: 3,"
                                        " freeze_last_layer_steps: 1}}\n")  # fmt: skip
    made = check_submission("pretrain", {**given, "recipe": str(tmp_path / "mine.yaml")})
    assert made.notes == () and made.arguments["recipe"].startswith(f"{bucket_uri}/runs/recipes/mine-")
    config = steps.plan(given["run"], steps.ConfigSource(made.arguments["recipe"], (), given["slides"]))
    assert config.train.num_steps == 77
    again = check_submission("pretrain", {**given, "recipe": str(tmp_path / "mine.yaml")})
    assert again.arguments == made.arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slides": "slidess"}, "there is no slide in"),
        ({"settings": ["evaluate.baselines=['s3://BUCKET/none/teachers/x']"]}, "model.json is not there"),
    ],
)
def test_what_the_bucket_says_is_refused_before_submission(
    given: dict[str, str], bucket_uri: str, change: dict[str, object], message: str
) -> None:
    if "slides" in change:
        change = {"slides": f"{bucket_uri}/{change['slides']}"}
    with pytest.raises(UserError, match=message):
        check_submission("pretrain", {**given, **_with_bucket(change, bucket_uri)}, recipe="demo")


def _with_bucket(change: dict[str, object], bucket_uri: str) -> dict[str, object]:
    settings = change.get("settings")
    if not isinstance(settings, list):
        return change
    return {"settings": [each.replace("s3://BUCKET", bucket_uri) for each in settings]}


def test_another_configuration_of_a_trained_run_is_refused(given: dict[str, str]) -> None:
    steps.plan(given["run"], steps.ConfigSource("demo", (), given["slides"]))
    open_store(given["run"]).put(RunLayout.checkpoint_marker(3), b"{}")
    with pytest.raises(UserError, match="seed: 0 → 1"):
        check_submission("pretrain", {**given, "settings": ["seed=1"]}, recipe="demo")
