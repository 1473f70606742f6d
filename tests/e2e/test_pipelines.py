"""The compiled pipelines beside pretraining, run locally from end to end on tiny data."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eosin.demo.synthetic import SyntheticConfig, write_dataset
from eosin.layout import RunLayout
from eosin.storage import open_store
from tests.support import demo
from tests.support.evaluation import export, make_config, make_run

pytestmark = [pytest.mark.e2e, pytest.mark.long]

SMALL = SyntheticConfig(
    num_slides=3, width_px=1200, height_px=1100, labelled_patients=3, labelled_per_class=3, seed=11
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    write_dataset(str(folder), SMALL)
    return folder


def eosin(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One command of eosin, to its end."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "EOSIN_"))}
    return subprocess.run(
        [sys.executable, "-m", "eosin", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=400,
    )


def settings_of(dataset: Path) -> list[str]:
    labelled = json.dumps((dataset / "labelled").as_uri())
    tasks = (
        "[{kind: unsupervised, name: heldout}, "
        f"{{kind: knn, name: textures-knn, dataset: {labelled}, k: 5}}]"
    )
    chosen = [
        *demo.TINY,
        f"evaluate.tasks={tasks}",
        "evaluate.baselines=[]",
        "index.num_shards=1",
        "patches.heldout.num_shards=1",
    ]
    return [part for setting in chosen for part in ("--set", setting)]


def results_of(run_uri: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(open_store(run_uri).get(RunLayout.SUMMARY_JSON))["results"]
    return rows


def test_evaluate_judges_a_teacher_from_elsewhere_without_training(dataset: Path, tmp_path: Path) -> None:
    config = make_config([{"kind": "unsupervised"}])
    origin = make_run(tmp_path / "origin", config)
    export(origin, config, 40)
    run_uri = (tmp_path / "runs" / "judged").as_uri()
    arguments = ["--local", "--pipeline", "evaluate", "--teacher", origin, "--run", run_uri]
    slides = ["--slides", (dataset / "slides").as_uri()]
    done = eosin("run", "demo", *arguments, *slides, *settings_of(dataset))
    assert done.returncode == 0, done.stderr
    rows = results_of(run_uri)
    judged = {(row["model"], row["task"]) for row in rows if row["status"] == "ok"}
    assert judged == {(f"{origin}/teachers/step-00000040", task) for task in ("heldout", "textures-knn")}
    store = open_store(run_uri)
    assert not list(store.list(RunLayout.CHECKPOINTS)) and not store.exists(RunLayout.TRAINING_DONE)

    again = eosin("run", *arguments)
    assert again.returncode == 0, again.stderr
    assert "unchanged" in again.stderr and results_of(run_uri) == rows


def test_retrain_stops_early_then_trains_on_and_promotes_only_what_is_better(
    dataset: Path, tmp_path: Path
) -> None:
    slides, registry = tmp_path / "slides", (tmp_path / "registry").as_uri()
    slides.mkdir()
    files = sorted((dataset / "slides").iterdir())
    for file in files[:-1]:
        (slides / file.name).write_bytes(file.read_bytes())
    name = ["--param", f"registry={registry}", "--param", "name=he"]

    def retrain(run: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        place = ["--run", (tmp_path / "runs" / run).as_uri()]
        done = eosin("run", *arguments, "--pipeline", "retrain", "--local", *place, *name)
        assert done.returncode == 0, done.stderr
        return done

    first = ["demo", "--slides", slides.as_uri(), *settings_of(dataset)]
    assert "promoted · version 1" in retrain("first", *first, "--set", "evaluate.checkpoints=last").stderr

    stopped = retrain("idle", "--set", "train.num_steps=4").stderr
    assert "0 of 2 slides are new since version 1 of he" in stopped and "▸ train" not in stopped
    assert not open_store((tmp_path / "runs" / "idle").as_uri()).exists(RunLayout.TRAINING_DONE)

    (slides / files[-1].name).write_bytes(files[-1].read_bytes())
    # No six steps on three slides can be better by half of all there is: the current model stays.
    retrain("grown", "--param", "judge_by=[textures-knn/balanced_accuracy]", "--param", "margin=0.5")
    rows = results_of((tmp_path / "runs" / "grown").as_uri())
    current = f"{(tmp_path / 'runs' / 'first').as_uri()}/teachers/step-00000006"
    assert {row["model"] for row in rows if row["status"] == "ok"} == {current, "step-00000006"}
    shown = json.loads(eosin("registry", "show", registry, "--json").stdout)["models"][0]
    assert (shown["current"], len(shown["versions"])) == (1, 1)


def test_a_scaling_study_is_one_command_and_one_report(dataset: Path, tmp_path: Path) -> None:
    study_uri = (tmp_path / "studies" / "patches").as_uri()
    place = ["--local", "--run", study_uri, "--slides", (dataset / "slides").as_uri()]
    vary = ["--param", "vary=patches", "--param", "values=[4, all]"]
    settings = [*settings_of(dataset), "--set", "evaluate.checkpoints=last"]
    done = eosin("run", "demo", "--pipeline", "scaling_study", *place, *vary, *settings)
    assert done.returncode == 0, done.stderr
    told = json.loads(open_store(study_uri).get(RunLayout.SUMMARY_JSON))
    assert [(v["name"], v["value"], v["step"]) for v in told["variants"]] == [("4", 4, 6), ("all", None, 6)]
    assert told["problems"] == []
    figures = [{(f["task"], f["metric"]) for f in v["figures"]} for v in told["variants"]]
    assert figures[0] == figures[1] >= {("heldout", "rankme"), ("textures-knn", "balanced_accuracy")}
    assert open_store(study_uri).exists(RunLayout.patch_set_manifest("heldout"))
    assert all(not list(open_store(v["run"]).list(RunLayout.PATCH_SETS)) for v in told["variants"])


def test_tiles_and_features_of_an_index_are_two_pipelines(dataset: Path, tmp_path: Path) -> None:
    index, tiles, features = (str(tmp_path / name) for name in ("index", "tiles", "features"))
    done = eosin("index", "--slides", str(dataset / "slides"), "--index", index)
    assert done.returncode == 0, done.stderr
    here = ("run", "--local", "--param", "num_shards=2", "--pipeline")
    done = eosin(
        *here, "decode", "--run", tiles, "--index", index, "--set", "mpp=1.0", "--set", "patch_px=128"
    )
    assert done.returncode == 0, done.stderr
    config = make_config([{"kind": "unsupervised"}])
    origin = make_run(tmp_path / "origin", config)
    export(origin, config, 40)
    done = eosin(*here, "embed", "--run", features, "--param", f"patches={tiles}/patches/grid",
                 "--param", f"model={origin}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = json.loads(open_store(features).get("manifest.json"))
    assert manifest["num_slides"] == 3 and manifest["spec"]["patches_uri"].endswith("/patches/grid")
    done = eosin(*here, "embed", "--run", features, "--param", f"patches={tiles}/patches/none",
                 "--param", "model=timm:test_vit")  # fmt: skip
    assert done.returncode == 2 and "no patch set at" in done.stderr
