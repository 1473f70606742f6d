"""status asks a cluster only where there may be one, and never fails for it unless told to."""

import json
from typing import Any

import pytest

from eosin import status
from eosin.cli.app import invoke
from eosin.cluster import api
from eosin.cluster import live_state as live_state_module
from eosin.cluster.live_state import LiveState
from eosin.errors import TransientError

LIVE = LiveState("eosin-x", "Running", 0, {"anchor": {"Running": 2}})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs the cluster was asked of."""
    runs: list[str] = []

    def live_state(run: str, **_: str) -> LiveState:
        runs.append(run)
        if "away" in run:
            raise TransientError("the API server cannot be reached")
        return LIVE

    def run_status(run: str) -> status.RunStatus:
        return status.RunStatus(run, "demo", "0" * 64, ())

    monkeypatch.setattr(live_state_module, "live_state", live_state)
    monkeypatch.setattr(status, "run_status", run_status)
    monkeypatch.setattr(api, "is_configured", lambda: True)
    return runs


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert invoke(["status", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["live"]


def test_live_state_is_added(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "s3://b/r")["pods"] == {"anchor": {"Running": 2}}
    assert invoke(["status", "s3://b/r"]) == 0
    assert "JobSet eosin-x: running · anchor 2 running" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["file:///tmp/r"], ["s3://b/r", "--no-live"]])
def test_no_cluster_is_asked(
    asked: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert shown(capsys, *arguments) is None and asked == []


def test_a_cluster_that_is_away_spoils_nothing_unless_it_was_asked_for(
    asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(capsys, "s3://b/away") is None
    assert invoke(["status", "s3://b/away", "--live"]) == 75


def test_where_no_cluster_is_configured_none_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(api, "inside_a_pod", lambda: False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert api.is_configured() is False
    (tmp_path / "config").write_text("{}")
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/none:{tmp_path}/config")
    assert api.is_configured() is True


def test_a_finished_run_in_a_bucket_is_looked_at_by_what_fetches_its_report() -> None:
    def next_of(report: str) -> str:
        steps = (status.StepStatus("summarize", "done", report),)
        return status.RunStatus(report.rpartition("/")[0], "demo", "0" * 64, steps).next

    assert next_of("s3://b/my run/summary.html") == (
        "aws s3 cp 's3://b/my run/summary.html' . && open summary.html"
    )
    assert next_of("file:///runs/a/summary.html") == "open file:///runs/a/summary.html"
