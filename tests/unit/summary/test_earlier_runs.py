"""Earlier runs beside this one: which are chosen, and when their figures do not compare."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.storage import open_store
from eosin.summary.summarize import summarize
from tests.support.summary import fake_run, report_file

LOG = RunLog("test")


def summary(run: str) -> dict[str, Any]:
    summarize(run, log=LOG)
    document: dict[str, Any] = json.loads(report_file(run, RunLayout.SUMMARY_JSON))
    return document


def earlier_rows(document: dict[str, Any]) -> dict[str, dict[tuple[str, str], dict[str, Any]]]:
    return {
        row["model"]: {(each["task"], each["metric"]): each for each in row["figures"]}
        for row in document["side_by_side"]
        if row["source"] == "earlier run"
    }


def neighbour(run: str, name: str, *, first_event: str = "2025-06-01T00:00:00+00:00", **change: Any) -> str:
    """A copy of the run's report under another name, as a run that began at `first_event` left it."""
    document = json.loads(report_file(run, RunLayout.SUMMARY_JSON))
    document["provenance"]["first_event"] = first_event
    for result in document["results"]:
        result.update(change)
    uri = f"{run.rpartition('/')[0]}/{name}"
    open_store(uri).put(RunLayout.SUMMARY_JSON, json.dumps(document).encode())
    return uri


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    summarize(fake_run(folder), log=LOG)
    return folder


@pytest.fixture
def run(tmp_path: Path, pristine: Path) -> str:
    shutil.copytree(pristine, tmp_path / "copy")
    return f"file://{tmp_path}/copy/runs/demo"


def test_the_newest_that_began_before_this_one_stand_beside_it(run: str) -> None:
    for month in range(1, 9):
        neighbour(run, f"run-{month}", first_event=f"2025-{month:02d}-01T00:00:00+00:00")
    neighbour(run, "later", first_event="2027-01-01T00:00:00+00:00")
    document = summary(run)
    assert list(earlier_rows(document)) == [f"run-{month}" for month in (8, 7, 6, 5, 4)]
    own = next(row for row in document["side_by_side"] if row["model"].startswith("last teacher"))
    assert earlier_rows(document)["run-8"].values()
    assert [each["mean"] for each in earlier_rows(document)["run-8"].values()] == [
        each["mean"] for each in own["figures"]
    ]
    assert not any(each["doubt"] for each in earlier_rows(document)["run-8"].values())
    page = report_file(run, RunLayout.SUMMARY_HTML)
    assert "run-8" in page and "run-1" not in page and "later" not in page
    assert "run-8 (earlier run)" in report_file(run, RunLayout.SUMMARY_MD).replace("\\", "")


def test_a_figure_on_other_data_or_by_another_protocol_is_never_the_best(run: str) -> None:
    neighbour(run, "data", mean=0.999, dataset_digest="e" * 64)
    neighbour(run, "protocol", mean=0.999, protocol="linear-probe v0")
    neighbour(run, "silent", mean=0.999, dataset_digest="")
    document = summary(run)
    doubts = {name: {each["doubt"] for each in row.values()} for name, row in earlier_rows(document).items()}
    assert doubts == {
        "data": {"judged on other data"},
        "protocol": {"judged by another protocol"},
        "silent": {"judged on other data"},
    }
    assert '<span class="best">0.999' not in report_file(run, RunLayout.SUMMARY_HTML)


def test_a_better_earlier_run_is_the_best_of_its_column(run: str) -> None:
    neighbour(run, "better", mean=0.999)
    summary(run)
    assert '<span class="best">0.999' in report_file(run, RunLayout.SUMMARY_HTML)


def test_neighbours_without_a_report_or_with_a_damaged_one_are_passed_over(run: str) -> None:
    neighbour(run, "good")
    parent = run.rpartition("/")[0]
    open_store(f"{parent}/damaged").put(RunLayout.SUMMARY_JSON, b'{"results": [{"model"')
    open_store(f"{parent}/other").put(RunLayout.SUMMARY_JSON, b'{"results": 3, "recipe": "x"}')
    open_store(f"{parent}/unfinished").put(RunLayout.CONFIG, b"x: 1")
    document = summary(run)
    assert list(earlier_rows(document)) == ["good"] and document["problems"] == []


def test_none_are_looked_for_where_none_are_wanted(tmp_path: Path) -> None:
    run = fake_run(tmp_path, num_earlier_runs=0)
    summary(run)
    neighbour(run, "before")
    assert earlier_rows(summary(run)) == {}


def test_a_named_run_is_shown_wherever_it_lies_and_missed_where_it_does_not(tmp_path: Path) -> None:
    away = f"file://{tmp_path}/away/runs/old"
    gone = f"file://{tmp_path}/away/runs/gone"
    damaged = f"file://{tmp_path}/away/runs/damaged"
    run = fake_run(tmp_path, num_earlier_runs=0, compare_with=[away, gone, damaged])
    first = summary(run)
    assert [gone in line or away in line or damaged in line for line in first["problems"]] == [True] * 3
    open_store(away).put(RunLayout.SUMMARY_JSON, report_file(run, RunLayout.SUMMARY_JSON).encode())
    open_store(damaged).put(RunLayout.SUMMARY_JSON, b"[]")
    document = summary(run)
    assert list(earlier_rows(document)) == ["old"]
    assert len(document["problems"]) == 2
    assert any("damaged" in line for line in document["problems"])
