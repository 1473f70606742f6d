"""submit, cancel and resume of a run at any stage, with kfp's own client and a mock API server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kfp import Client

from eosin import run_control
from eosin.cluster.api import Cluster
from eosin.errors import TransientError, UserError
from eosin.kubeflow import runs
from eosin.layout import RunLayout
from eosin.records import KubeflowRun, load_record
from eosin.run_control import Where, cancel, note_submission, resume
from eosin.storage import open_store
from tests.support.api_server import NAMESPACE, WORKFLOWS, ApiServer, serve
from tests.support.kubeflow import Kubeflow, kubeflow_server, published_pipeline


@pytest.fixture
def kubeflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kubeflow]:
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "KFP_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with kubeflow_server() as server:
        yield server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """The cluster of the kubeconfig, in whatever namespace is asked for."""
    with serve() as running:

        def connect(namespace: str = "", **_: Any) -> Cluster:
            made = Cluster(running.cluster.core.api_client, namespace or "elsewhere", sleep=lambda _: None)
            return made

        monkeypatch.setattr(run_control, "connect", connect)
        yield running


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: Any, **__: Any) -> Cluster:
        raise UserError("no Kubernetes cluster is configured here")

    monkeypatch.setattr(run_control, "connect", connect)


def submitted(kubeflow: Kubeflow, uri: str, pipeline: str = "pretrain", **more: Any) -> Any:
    client = Client(host=kubeflow.host, namespace="kubeflow")
    runs.submit_run(client, published_pipeline(pipeline), {"run": uri, **more}, experiment="e")
    return kubeflow.runs[-1]


def workflow(server: ApiServer, name: str, run_id: str, **status: Any) -> None:
    labels = {"pipeline/runid": run_id}
    server.add(WORKFLOWS, {"metadata": {"name": name, "uid": f"{name}-uid", "labels": labels},
                           "spec": {"entrypoint": "x"}, "status": status})  # fmt: skip


def deadline(server: ApiServer, name: str) -> Any:
    from eosin.cluster.names import WORKFLOW

    found = server.cluster.get(WORKFLOW, name)
    assert found is not None
    return found["spec"].get("activeDeadlineSeconds")


def test_runs_that_end_in_the_same_name_are_not_the_same_run(kubeflow: Kubeflow) -> None:
    for uri in ("s3://b/runs/x", "s3://b/elsewhere/x", "s3://b/runs/x"):
        submitted(kubeflow, uri)
    assert [run["runtime_config"]["parameters"]["run"] for run in kubeflow.runs] == [
        "s3://b/runs/x",
        "s3://b/elsewhere/x",
    ]


def test_another_pipeline_of_the_same_uri_is_another_run(kubeflow: Kubeflow) -> None:
    submitted(kubeflow, "s3://b/runs/x")
    submitted(kubeflow, "s3://b/runs/x", "evaluate", teacher="s3://b/runs/y")
    assert len(kubeflow.runs) == 2


def test_a_submission_is_noted_with_the_run_and_its_first_step_knows_more(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/run"
    place = KubeflowRun(namespace="", run_id="r", host="http://kf")
    assert note_submission(uri, place) == ""
    known = place.model_copy(update={"namespace": "team", "workflow": "w"})
    open_store(uri).put(RunLayout.KUBEFLOW_RUN, known.to_json())
    note_submission(uri, place)
    assert load_record(KubeflowRun, open_store(uri), RunLayout.KUBEFLOW_RUN) == known


def test_cancel_while_planning_ends_the_workflow_in_the_namespace_that_the_run_noted(
    server: ApiServer, tmp_path: Path
) -> None:
    uri = f"file://{tmp_path}/run"
    workflow(server, "pretrain-1", "r-1")
    note_submission(uri, KubeflowRun(namespace=NAMESPACE, run_id="r-1", workflow="pretrain-1"))
    done = cancel(uri, Where())
    assert (done.namespace, done.on_cluster and done.on_cluster.workflow) == (NAMESPACE, "pretrain-1")
    assert deadline(server, "pretrain-1") == 0
    assert "Workflow pretrain-1 stopped" in str(done)


def test_cancel_without_a_cluster_asks_kubeflow(kubeflow: Kubeflow, no_cluster: None, tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/run"
    run = submitted(kubeflow, "s3://b/runs/x")
    note_submission(uri, KubeflowRun(namespace="", run_id=run["run_id"], host=kubeflow.host))
    done = cancel(uri, Where())
    assert done.kubeflow_run == run["run_id"] and run["state"] == "CANCELING"
    kubeflow.settle()
    assert run["state"] == "FAILED"


def test_cancel_that_reaches_nothing_says_what_goes_on_and_whether_to_try_again(
    no_cluster: None, tmp_path: Path
) -> None:
    uri = f"file://{tmp_path}/run"
    note_submission(uri, KubeflowRun(namespace=NAMESPACE, run_id="r-1"))
    with pytest.raises(UserError, match=r"Kubeflow run r-1 may go on, and train"):
        cancel(uri, Where())
    note_submission(uri, KubeflowRun(namespace=NAMESPACE, run_id="r-2", host="http://127.0.0.1:9"))
    with pytest.raises(TransientError, match=r"r-2 may go on, .*cannot be reached"):
        cancel(uri, Where())


def test_cancel_of_a_run_that_has_ended_stops_nothing(server: ApiServer, tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/run"
    workflow(server, "ended", "r-1", finishedAt="2026-01-01T00:00:00Z")
    note_submission(uri, KubeflowRun(namespace=NAMESPACE, run_id="r-1", workflow="ended"))
    assert cancel(uri, Where()).on_cluster is not None
    assert deadline(server, "ended") is None


def test_resume_retries_a_failed_run_and_no_other(kubeflow: Kubeflow, tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/run"
    run = submitted(kubeflow, "s3://b/runs/x")
    note_submission(uri, KubeflowRun(namespace="", run_id=run["run_id"], host=kubeflow.host))
    with pytest.raises(UserError, match="is pending"):
        resume(uri, Where())
    run["state"] = "FAILED"
    assert resume(uri, Where()) == run["run_id"] and run["state"] == "RUNNING"
    run["state"] = "SUCCEEDED"
    with pytest.raises(UserError, match="has succeeded"):
        resume(uri, Where())


def test_a_run_is_found_by_its_uri_where_nobody_noted_it(kubeflow: Kubeflow) -> None:
    first = submitted(kubeflow, "s3://b/runs/x")
    first["state"] = "FAILED"
    submitted(kubeflow, "s3://b/runs/other")
    client = Client(host=kubeflow.host, namespace="kubeflow")
    found = runs.find_run(client, "s3://b/runs/x")
    assert found is not None and (found.run_id, found.is_active) == (first["run_id"], False)
    assert runs.find_run(client, "s3://b/runs/none") is None


def test_the_backend_refuses_what_it_refuses(kubeflow: Kubeflow) -> None:
    """The double agrees with the backend about parameters, or tests against it would prove nothing."""
    client = Client(host=kubeflow.host, namespace="kubeflow")
    pipeline, asked = published_pipeline("pretrain"), {"run": "s3://b/r"}
    for wrong in ({"unknown": 1}, {"num_index_shards": "two"}, {"settings": ["x" * 2_000_000]}):
        with pytest.raises(Exception, match=r"not declared|requires type|too large"):
            runs.submit_run(client, pipeline, {**asked, **wrong}, experiment="e")
    assert json.dumps(kubeflow.runs) == "[]"
