"""The schedule's submission: one run at a time, one a day, the same however often it is repeated."""

from __future__ import annotations

import socket
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from eosin_pipelines.submit import main, pipeline_file, submit

from eosin.errors import UserError

DAY = date(2026, 3, 1)
RUN = "s3://b/runs/weekly-{date}"


class FakeKubeflow:
    """The four calls of kfp's Client, with pages of two runs."""

    def __init__(self, *runs: tuple[str, str]) -> None:
        self.runs = [SimpleNamespace(display_name=name, state=state) for name, state in runs]
        self.made: list[dict[str, Any]] = []

    def create_experiment(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=f"id-of-{name}")

    def list_runs(self, *, experiment_id: str, page_size: int, page_token: str) -> Any:
        start = int(page_token or 0)
        more = start + 2 < len(self.runs)
        return SimpleNamespace(
            runs=self.runs[start : start + 2], next_page_token=str(start + 2) if more else None
        )

    def create_run_from_pipeline_package(self, file: str, **given: Any) -> Any:
        self.made.append({"file": file, **given})
        return SimpleNamespace(run_id="r-1")


def scheduled(client: FakeKubeflow, **parameters: Any) -> str:
    return submit(client, Path("p.yaml"), experiment="weekly", run_uri=RUN, parameters=parameters, day=DAY)


def test_run_is_named_after_its_day_and_empty_parameters_are_left_to_the_pipeline() -> None:
    client = FakeKubeflow(("weekly-2026-02-22", "SUCCEEDED"))
    assert scheduled(client, recipe="demo", train_image="") == "submitted weekly-2026-03-01 as r-1"
    (made,) = client.made
    assert made["arguments"] == {"run": "s3://b/runs/weekly-2026-03-01", "recipe": "demo"}
    assert (made["run_name"], made["experiment_id"]) == ("weekly-2026-03-01", "id-of-weekly")


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "PAUSED", "CANCELING"])
def test_nothing_is_submitted_while_one_is_going_even_on_the_last_page(state: str) -> None:
    client = FakeKubeflow(*[(f"old-{i}", "FAILED") for i in range(4)], ("weekly-2026-02-22", state))
    assert "nothing submitted" in scheduled(client)
    assert client.made == []


def test_repeated_submission_of_a_day_that_succeeded_does_nothing() -> None:
    client = FakeKubeflow(("weekly-2026-03-01", "SUCCEEDED"))
    assert "nothing submitted" in scheduled(client)


def test_day_that_failed_is_tried_again_under_the_same_uri() -> None:
    client = FakeKubeflow(("weekly-2026-03-01", "FAILED"))
    scheduled(client)
    assert client.made[0]["arguments"]["run"] == "s3://b/runs/weekly-2026-03-01"


def test_pipelines_are_found_by_name_and_unknown_ones_are_refused() -> None:
    assert pipeline_file("pretrain").is_file()
    with pytest.raises(UserError, match="no compiled pipeline pretrian") as caught:
        pipeline_file("pretrian")
    assert "pretrain" in caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run", "s3://b/runs/always"], "no {date}"),
        (["--run", RUN, "--parameters", "{recipe"], "not JSON"),
        (["--run", RUN, "--parameters", "[1]"], "JSON object"),
    ],
)
def test_bad_arguments_are_the_users(arguments: list[str], words: str, capsys: Any) -> None:
    common = ["--pipeline", "pretrain", "--experiment", "e", "--host", "http://127.0.0.1:9"]
    assert main([*common, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_kubeflow_out_of_reach_is_transient(capsys: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        host = f"http://127.0.0.1:{taken.getsockname()[1]}"
        arguments = ["--pipeline", "pretrain", "--experiment", "e", "--host", host, "--run", RUN]
        assert main(arguments) == 75
    assert "cannot be reached" in capsys.readouterr().err
