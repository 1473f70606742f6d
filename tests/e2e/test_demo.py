"""The demo as a person runs it: to its end, killed, twice at once, on bad input."""

import html
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eosin.demo.synthetic import SyntheticConfig, write_dataset
from eosin.models.arch import import_timm
from tests.support import demo

pytestmark = pytest.mark.e2e

SMALL = SyntheticConfig(
    num_slides=3, width_px=1200, height_px=1100, labelled_patients=3, labelled_per_class=3, seed=5
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("my slides ü")
    write_dataset(str(folder), SMALL)
    return folder


def settings_of(dataset: Path) -> tuple[str, ...]:
    labelled = json.dumps((dataset / "labelled").as_uri())
    probe = "{num_steps: 40, num_runs: 2}"
    tasks = (
        "[{kind: unsupervised, name: heldout}, "
        f"{{kind: knn, name: textures-knn, dataset: {labelled}, k: 5}}, "
        f"{{kind: linear-probe, name: textures-linear, dataset: {labelled}, probe: {probe}}}]"
    )
    return (*demo.TINY, f"evaluate.tasks={tasks}")


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> demo.Finished:
    folder = tmp_path_factory.mktemp("undisturbed")
    return demo.run(folder, "--slides", str(dataset / "slides"), settings=settings_of(dataset))


def results(finished: demo.Finished) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = finished.summary()["results"]
    return rows


def test_demo_ends_with_a_report_and_every_evaluation(undisturbed: demo.Finished) -> None:
    assert undisturbed.returncode == 0, undisturbed.stderr
    rows = results(undisturbed)
    assert {row["model"] for row in rows} == {"random-init", "step-00000003", "step-00000006"}
    assert {row["task"] for row in rows} == {"heldout", "textures-knn", "textures-linear"}
    assert {row["status"] for row in rows} == {"ok"}
    assert all(row["step"] == 0 for row in rows if row["model"] == "random-init")


def test_demo_shows_every_step(undisturbed: demo.Finished) -> None:
    for step in ("index ·", "decode ·", "train", "evaluate ·", "summarize ·"):
        assert f"▸ {step}" in undisturbed.stderr


def test_report_is_one_offline_file(undisturbed: demo.Finished) -> None:
    page = Path(undisturbed.printed("report: ")).read_text()
    assert "<svg" in page and 'src="http' not in page and 'href="http' not in page.replace("w3.org", "")


def test_the_lines_of_the_report_load_the_newest_teacher(
    undisturbed: demo.Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, model = (Path(undisturbed.printed(name)) for name in ("report:", "model:"))
    section = report.read_text().partition('<section id="use">')[2].partition("</section>")[0]
    load, features = (html.unescape(block) for block in re.findall(r"<pre>(.*?)</pre>", section, re.DOTALL))
    assert model.name == "step-00000006" and load in (model / "README.md").read_text()
    monkeypatch.chdir(model.parent)
    import_timm()
    scope = {"image": Image.new("RGB", (96, 96), "pink")}
    exec(load + features, scope)
    assert scope["features"].shape == (1, json.loads((model / "model.json").read_text())["num_features"])


def test_killed_anywhere_and_run_again_ends_the_same(
    dataset: Path, undisturbed: demo.Finished, tmp_path: Path
) -> None:
    arguments = ("--slides", str(dataset / "slides"))
    settings = settings_of(dataset)
    for moment in ("▸ index · publish", "train: checkpoint", "▸ evaluate", "▸ summarize"):
        process = demo.start(tmp_path, *arguments, settings=settings)
        demo.kill_when(process, moment)
    finished = demo.run(tmp_path, *arguments, settings=settings)
    assert finished.returncode == 0, finished.stderr
    assert results(finished) == results(undisturbed)


@pytest.mark.parametrize(
    ("kill", "moment"),
    [(demo.kill_group, "train: checkpoint"), (demo.terminate, "▸ index"), (demo.terminate, "train: world")],
)
def test_nothing_outlives_a_killed_demo(dataset: Path, tmp_path: Path, kill: demo.Kill, moment: str) -> None:
    """SIGTERM goes to the one process that a person started, as `kill PID` does."""
    process = demo.start(tmp_path, "--slides", str(dataset / "slides"), settings=settings_of(dataset))
    demo.kill_when(process, moment, kill=kill)
    deadline_s = time.monotonic() + 30
    while (left := demo.processes_of(tmp_path)) and time.monotonic() < deadline_s:
        time.sleep(0.5)
    assert not left


def test_run_again_recomputes_nothing(dataset: Path, undisturbed: demo.Finished) -> None:
    folder = Path(undisturbed.printed("report: ")).parents[2]
    again = demo.run(folder, "--slides", str(dataset / "slides"), settings=settings_of(dataset))
    assert again.returncode == 0, again.stderr
    assert results(again) == results(undisturbed)
    assert "train: world" not in again.stderr and "images" not in again.stderr


def test_second_demo_in_the_same_folder_is_refused(dataset: Path, tmp_path: Path) -> None:
    first = demo.start(tmp_path, "--slides", str(dataset / "slides"))
    try:
        _wait_for_lock(tmp_path)
        second = demo.run(tmp_path, "--slides", str(dataset / "slides"))
    finally:
        demo.kill_group(first)
        first.communicate()
    assert second.returncode == 2 and "already running" in second.stderr


def _wait_for_lock(folder: Path) -> None:
    deadline_s = time.monotonic() + 30
    while not (folder / "lock").is_file() or not (folder / "lock").read_text():
        assert time.monotonic() < deadline_s, "the first demo never took its lock"
        time.sleep(0.05)
