"""Checks of a submission against a bucket, and the recipe file that goes into it."""

from pathlib import Path
from typing import Any

import pytest

from eosin import preflight, steps
from eosin.cli.app import invoke
from eosin.config import load_config
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
    assert made.arguments["recipe"].startswith(f"{bucket_uri}/runs/recipes/mine-")
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


KIND = load_config(
    "cluster: {pools: [{name: anchor, gpus_per_node: 0}, "
    "{name: spot, spot: true, max_nodes: 2, gpus_per_node: 0}]}"
).cluster
"""Up to three nodes of two workers each; the demo's batch has two parts."""


@pytest.fixture
def presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster in reach whose presets do not fit the demo."""
    monkeypatch.setattr(preflight, "defaults_in_reach", lambda namespace="": (KIND, ""))
    monkeypatch.setattr(steps, "in_pod", lambda: True)
    monkeypatch.setattr("eosin.cluster.api.connect", lambda namespace: None)
    monkeypatch.setattr("eosin.cluster.defaults.load_defaults", lambda cluster: KIND)


def test_pools_that_the_cluster_presets_and_the_recipe_does_not_fit_are_refused_by_submit(
    given: dict[str, str], presets: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--run", given["run"], "--slides", given["slides"], "--recipe", "demo", "--dry-run"]
    images = [f"--param={name}_image=reg/{name}:1" for name in ("index", "train", "evaluate")]
    assert invoke(["submit", "pretrain", *arguments, *images]) == 2
    assert "6 workers share only 2 microbatches" in capsys.readouterr().err
    assert invoke(["submit", "pretrain", *arguments, *images, "--set", "train.num_microbatches=8"]) == 0
    assert "can be submitted; nothing was" in capsys.readouterr().out
    assert invoke(["run", "demo", *arguments[:4], "--dry-run"]) == 2


@pytest.mark.parametrize("backend", ["jobset", "local", ""])
def test_the_plan_step_refuses_them_before_anything_is_published(
    given: dict[str, str], presets: None, backend: str
) -> None:
    def planned(kind: str) -> Any:
        source = steps.ConfigSource("demo", (), given["slides"])
        if kind == "study":
            return steps.plan_study(given["run"], "train.method", ["dino", "dinov2"], source, backend)
        if kind == "retrain":
            return steps.plan_retrain(given["run"], f"{given['run']}-registry", "x", source, backend)
        return steps.plan(given["run"], source, backend)

    for kind in ("study", "retrain", "plan"):
        if backend == "jobset":
            with pytest.raises(UserError, match="6 workers share only 2 microbatches"):
                planned(kind)
            assert not open_store(given["run"]).exists(RunLayout.CONFIG)
    if backend != "jobset":
        planned("plan")


def test_a_published_copy_of_a_pipeline_is_checked_as_eosins_own(
    given: dict[str, str], tmp_path: Path
) -> None:
    """`make publish` writes it elsewhere; its name tells what it is."""
    from eosin.kubeflow.parameters import compiled_pipeline, own_pipeline

    copy = tmp_path / "mine.yaml"
    copy.write_text(compiled_pipeline("scaling_study").read_text())
    assert own_pipeline(copy) == "scaling_study"
    copy.write_text(copy.read_text().replace("name: eosin-scaling-study", "name: else"))
    assert own_pipeline(copy) == ""
