"""submit and schedule, with kfp's own client, against the part of the API that they use."""

import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from eosin.cli.app import invoke
from tests.support.kubeflow import Kubeflow, kubeflow_server, published_pipeline

RETRAIN = ["retrain", "--run", "s3://b/runs/weekly-{date}", "--param", "registry=s3://b/reg", "--param",
           "name=he"]  # fmt: skip
SLIDES = ("--slides", "s3://b/slides")
WEEKLY = ["schedule", "create", "weekly", *RETRAIN, "--cron", "0 3 * * 0"]


@pytest.fixture
def kubeflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kubeflow]:
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "KFP_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with kubeflow_server() as server:
        yield server


def with_images(arguments: tuple[str, ...]) -> list[str]:
    return [str(published_pipeline(word)) if word in ("pretrain", "retrain") else word for word in arguments]


def eosin(kubeflow: Kubeflow, *arguments: str, code: int = 0) -> None:
    """Run one command against the server."""
    assert invoke([*with_images(arguments), "--host", kubeflow.host]) == code


def as_json(kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert invoke([*with_images(arguments), "--host", kubeflow.host, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_is_submitted_once_while_it_is_going(
    kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["submit", "pretrain", "--run", "s3://b/runs/first", "--slides", "s3://b/slides",
               "--param", "num_index_shards=7", "--set", "seed=1"]  # fmt: skip
    first = as_json(kubeflow, capsys, *command)
    again = as_json(kubeflow, capsys, *command)
    assert (first["found"], again["found"]) == (False, True) and first["run_id"] == again["run_id"]
    (run,) = kubeflow.runs
    assert run["display_name"] == "first" and first["url"].startswith(kubeflow.host)
    assert run["runtime_config"]["parameters"] == {
        "run": "s3://b/runs/first", "slides": "s3://b/slides", "num_index_shards": 7, "settings": ["seed=1"],
    }  # fmt: skip
    run["state"] = "FAILED"
    assert as_json(kubeflow, capsys, *command)["found"] is False and len(kubeflow.runs) == 2


def test_the_one_that_is_going_is_found_on_the_last_page(
    kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c", "d", "last"):
        as_json(kubeflow, capsys, "submit", "pretrain", "--run", f"s3://b/runs/{name}", *SLIDES)
    assert (
        as_json(kubeflow, capsys, "submit", "pretrain", "--run", "s3://b/runs/last", *SLIDES)["found"] is True
    )
    assert len(kubeflow.runs) == 5


def test_the_day_of_a_submission_is_in_its_name(kubeflow: Kubeflow) -> None:
    eosin(kubeflow, "submit", *RETRAIN)
    assert kubeflow.runs[0]["display_name"] == f"weekly-{datetime.now(UTC).date().isoformat()}"


def test_a_schedule_recurs_one_at_a_time_and_makes_nothing_up(kubeflow: Kubeflow) -> None:
    eosin(kubeflow, *WEEKLY)
    (made,) = kubeflow.schedules
    assert (made["max_concurrency"], made["no_catchup"], made["mode"]) == (1, True, "ENABLE")
    assert made["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * 0"
    assert made["runtime_config"]["parameters"]["run"] == "s3://b/runs/weekly-{date}"


def test_the_same_schedule_again_changes_nothing(
    kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str]
) -> None:
    assert as_json(kubeflow, capsys, *WEEKLY)["done"] == "created"
    before = list(kubeflow.schedules)
    assert as_json(kubeflow, capsys, *WEEKLY)["done"] == "unchanged"
    assert kubeflow.schedules == before


@pytest.mark.parametrize(
    "change", [["--paused"], ["--cron", "0 4 * * 0"], ["--param", "margin=0.1"], ["--service-account", "x"]]
)
def test_what_differs_is_made_anew_and_only_once(
    kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str], change: list[str]
) -> None:
    eosin(kubeflow, *WEEKLY)
    eosin(kubeflow, "schedule", "create", "other", *RETRAIN, "--cron", "1 1 * * *")
    old = kubeflow.schedules[0]["recurring_run_id"]
    weekly = WEEKLY[: WEEKLY.index("--cron")] if change[0] == "--cron" else WEEKLY
    assert as_json(kubeflow, capsys, *weekly, *change)["done"] == "replaced"
    names = [each["display_name"] for each in kubeflow.schedules]
    assert sorted(names) == ["other", "weekly"]
    assert old not in [each["recurring_run_id"] for each in kubeflow.schedules]


def test_failed_between_delete_and_create_the_next_call_mends_it(kubeflow: Kubeflow) -> None:
    eosin(kubeflow, *WEEKLY)
    changed = [*WEEKLY, "--param", "margin=0.1"]
    kubeflow.fail_creation = True
    eosin(kubeflow, *changed, code=75)
    assert kubeflow.schedules == []
    kubeflow.fail_creation = False
    eosin(kubeflow, *changed)
    assert [each["runtime_config"]["parameters"]["margin"] for each in kubeflow.schedules] == [0.1]


def test_two_of_a_name_become_one(kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str]) -> None:
    eosin(kubeflow, *WEEKLY)
    kubeflow.schedules.append({**kubeflow.schedules[0], "recurring_run_id": "twin"})
    assert as_json(kubeflow, capsys, *WEEKLY)["done"] == "unchanged"
    assert len(kubeflow.schedules) == 1


def test_listed_and_deleted(kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str]) -> None:
    assert as_json(kubeflow, capsys, "schedule", "list") == {"schedules": []}
    assert kubeflow.kinds["experiments"] == [], "looking makes nothing"
    eosin(kubeflow, *WEEKLY)
    (shown,) = as_json(kubeflow, capsys, "schedule", "list")["schedules"]
    assert (shown["name"], shown["enabled"], shown["cron"]) == ("weekly", True, "0 0 3 * * 0")
    assert as_json(kubeflow, capsys, "schedule", "delete", "weekly") == {"deleted": 1}
    assert as_json(kubeflow, capsys, "schedule", "delete", "weekly") == {"deleted": 0}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["schedule", "create", "w", "pretrain", "--run", "s3://b/x-{date}", "--cron", "0 3 * * 0"],
         "cannot recur"),
        ([*WEEKLY[:4], "--run", "s3://b/x", *WEEKLY[6:]], "put {date} in it"),
        ([*WEEKLY[:-1], "daily"], "has 1 fields"),
        ([*WEEKLY, "--param", "nme=x"], "did you mean name?"),
        (["submit", "pretrian", "--run", "s3://b/x"], "one of decode, embed, evaluate, pretrain, retrain"),
    ],
)  # fmt: skip
def test_refused_before_kubeflow_is_asked(
    kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str], command: list[str], words: str
) -> None:
    eosin(kubeflow, *command, code=2)
    assert words in capsys.readouterr().err and kubeflow.requests == []


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(503, 75, "answered 503"), (429, 75, "answered 429"), (401, 2, "log in"), (400, 2, "quota is spent")],
)
def test_what_kubeflow_refuses_is_said_with_the_kind_of_error(
    kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str], status: int, code: int, words: str
) -> None:
    kubeflow.failures = [(status, "quota is spent")] * 20
    eosin(kubeflow, *WEEKLY, code=code)
    assert words in capsys.readouterr().err and kubeflow.schedules == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_out_of_reach_is_worth_another_try(capsys: pytest.CaptureFixture[str], scheme: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"{scheme}://127.0.0.1:{unused.getsockname()[1]}"
    assert invoke([*with_images(tuple(WEEKLY)), "--host", host]) == 75
    error = capsys.readouterr().err
    assert f"cannot be reached: {host}/apis/v2beta1/healthz: connection refused" in error
    assert "port-forward" in error and "Pool" not in error


def test_what_is_no_address_is_the_users_to_mend(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke([*with_images(tuple(WEEKLY)), "--host", "ht tp://x"]) == 2
    assert capsys.readouterr().err.startswith("error: 'ht tp://x' is no address of Kubeflow\n")


def test_another_server_at_the_address_is_told_without_a_traceback(
    kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kfp.client.client.time.sleep", lambda _: None)
    assert invoke(["schedule", "list", "--host", f"{kubeflow.host}/elsewhere"]) == 75
    error = capsys.readouterr().err
    assert "not as Kubeflow Pipelines does" in error and "Traceback" not in error


def _evaluate_accelerator(uploaded: dict[str, Any]) -> Any:
    spec = uploaded["pipeline_spec"].get("pipeline_spec", uploaded["pipeline_spec"])
    container = spec["deploymentSpec"]["executors"]["exec-evaluate"]["container"]
    return container.get("resources", {}).get("accelerator", {}).get("resourceType")


def test_pods_asked_for_reach_kubeflow_with_the_pipeline(
    kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site = tmp_path / "pods.yaml"
    site.write_text("evaluate: {gpus: 1, gpu_resource: nvidia.com/gpu.shared}\n")
    monkeypatch.setenv("EOSIN_PODS", str(site))
    eosin(kubeflow, "submit", "pretrain", "--run", "s3://b/runs/first", *SLIDES)
    assert _evaluate_accelerator(kubeflow.runs[0]) == "nvidia.com/gpu.shared"
    eosin(kubeflow, *WEEKLY, "--pod", "evaluate.gpu_resource=nvidia.com/mig-1g.10gb")
    assert _evaluate_accelerator(kubeflow.schedules[0]) == "nvidia.com/mig-1g.10gb"


def test_a_schedule_is_made_anew_for_other_pods_and_only_then(
    kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*WEEKLY, "--pod", "evaluate.gpus=1"]
    assert as_json(kubeflow, capsys, *WEEKLY)["done"] == "created"
    assert as_json(kubeflow, capsys, *asked)["done"] == "replaced"
    assert as_json(kubeflow, capsys, *asked)["done"] == "unchanged"
    eosin(kubeflow, *WEEKLY, "--pod", "evalute.gpus=1", code=2)
