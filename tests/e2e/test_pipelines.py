"""The compiled pipelines beside pretraining, run locally from end to end on tiny data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eosin.layout import RunLayout
from eosin.slides.synthetic import SyntheticConfig, write_dataset
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
    write_dataset(folder, SMALL)
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
