"""Events of a run, stage by stage, under Argo's rules; and the documentation's table of them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kfp import Client

from eosin import step_process, steps
from eosin.demo.server import LocalS3
from eosin.kubeflow import runs
from eosin.layout import RunLayout
from eosin.records import KubeflowRun
from eosin.run_control import Where, resume
from eosin.storage import open_store
from tests.support.faults import Fault, FaultProxy
from tests.support.kubeflow import Argo, Happens, Kubeflow, kubeflow_server, published_pipeline

ROOT = Path(__file__).resolve().parents[3]
PRETRAIN = ("plan", "index-shard", "index-snapshot", "decode", "train", "evaluate", "summarize")
PIPELINES = ("pretrain", "evaluate", "retrain", "scaling_study")


@pytest.fixture
def kubeflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kubeflow]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
    with kubeflow_server() as server:
        yield server


def submitted(kubeflow: Kubeflow, folder: Path, pipeline: str = "pretrain") -> tuple[str, str]:
    """The run's URI, here a folder, and its id."""
    uri, client = f"file://{folder}/run", Client(host=kubeflow.host, namespace="kubeflow")
    more = {"retrain": {"registry": "s3://b/r", "name": "x"}, "evaluate": {"teacher": "s3://b/t"}}
    arguments = {"run": uri, **more.get(pipeline, {})}
    made = runs.submit_run(client, published_pipeline(pipeline), arguments, experiment="e")
    place = KubeflowRun(namespace="", run_id=made.run_id, host=kubeflow.host)
    open_store(uri).put(RunLayout.KUBEFLOW_RUN, place.to_json())
    return uri, made.run_id


def _at(stage: str, event: str) -> Happens:
    return lambda task, attempt: event if task == stage else "ok"


def state_of(kubeflow: Kubeflow, run_id: str) -> str:
    found = kubeflow.run(run_id)
    assert found is not None
    return str(found["state"])


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_stage_is_passed_once_and_the_last_task_sees_success(
    kubeflow: Kubeflow, tmp_path: Path, pipeline: str
) -> None:
    _, run_id = submitted(kubeflow, tmp_path, pipeline)
    argo = kubeflow.execute(run_id)
    assert set(argo.attempts.values()) == {1} and argo.exit_saw == ["SUCCEEDED"]
    assert argo.exit_task == "finish" and state_of(kubeflow, run_id) == "SUCCEEDED"
    if pipeline == "pretrain":
        assert sorted(argo.finished) == sorted(PRETRAIN)


@pytest.mark.parametrize("stage", PRETRAIN)
def test_a_deleted_pod_and_one_of_a_lost_node_are_tried_again(
    kubeflow: Kubeflow, tmp_path: Path, stage: str
) -> None:
    _, run_id = submitted(kubeflow, tmp_path)
    argo = kubeflow.execute(run_id, lambda task, n: "deleted" if (task, n) == (stage, 1) else "ok")
    assert argo.attempts[stage] == 2 and state_of(kubeflow, run_id) == "SUCCEEDED"


def test_a_launcher_of_days_may_be_moved_many_times(kubeflow: Kubeflow, tmp_path: Path) -> None:
    """Each replacement begins days after the first attempt: Argo's limit counts from that."""
    _, run_id = submitted(kubeflow, tmp_path)
    argo = kubeflow.execute(run_id, lambda task, n: "deleted" if task == "train" and n < 15 else "ok")
    assert argo.attempts["train"] == 15 and state_of(kubeflow, run_id) == "SUCCEEDED"


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_tasks_retries_outlast_a_training(kubeflow: Kubeflow, tmp_path: Path, pipeline: str) -> None:
    _, run_id = submitted(kubeflow, tmp_path, pipeline)
    tasks = kubeflow.execute(run_id).tasks
    limits_s = [float(task["retryPolicy"]["backoffMaxDuration"].rstrip("s")) for task in tasks.values()]
    assert min(limits_s) >= 30 * 86400


@pytest.mark.parametrize("event", ["evicted", "exit 137", "exit 75", "exit 1"])
@pytest.mark.parametrize("stage", PRETRAIN)
def test_an_end_that_argo_does_not_try_again_is_resumed_from_the_finished_steps(
    kubeflow: Kubeflow, tmp_path: Path, stage: str, event: str
) -> None:
    uri, run_id = submitted(kubeflow, tmp_path)
    argo = kubeflow.execute(run_id, _at(stage, event))
    assert state_of(kubeflow, run_id) == "FAILED" and argo.exit_saw == ["FAILED"]
    assert "activeDeadlineSeconds" not in argo.workflow_spec, "the last task leaves training alone"
    before = dict(argo.attempts)
    assert resume(uri, Where()) == run_id
    argo = kubeflow.execute(run_id)
    assert state_of(kubeflow, run_id) == "SUCCEEDED" and argo.attempts[stage] == before[stage] + 1
    assert all(argo.attempts[task] == number for task, number in before.items() if task != stage)


@pytest.mark.parametrize("stage", PRETRAIN)
def test_where_the_administrator_has_set_always_a_failed_step_is_tried_again(
    kubeflow: Kubeflow, tmp_path: Path, stage: str
) -> None:
    _, run_id = submitted(kubeflow, tmp_path)
    found = kubeflow.run(run_id)
    assert found is not None
    spec = found["pipeline_spec"].get("pipeline_spec", found["pipeline_spec"])
    argo = Argo(spec, retry_policy="Always")
    assert argo.run(lambda task, n: "evicted" if (task, n) == (stage, 1) else "ok") == "SUCCEEDED"
    assert argo.attempts[stage] == 2


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_after_a_terminate_the_last_task_runs_within_a_minute_and_sees_why(
    kubeflow: Kubeflow, tmp_path: Path, pipeline: str
) -> None:
    _, run_id = submitted(kubeflow, tmp_path, pipeline)
    stages = list(kubeflow.execute(run_id).finished)
    for number, stage in enumerate(stages):
        _, run_id = submitted(kubeflow, tmp_path / str(number), pipeline)
        argo = kubeflow.execute(run_id, _at(stage, "terminate"))
        assert state_of(kubeflow, run_id) == "FAILED" and argo.exit_saw == ["FAILED"]
        assert argo.workflow_spec == {"activeDeadlineSeconds": 0} and stage not in argo.finished


@pytest.mark.parametrize("stage", PRETRAIN)
def test_a_terminated_run_is_resumed_from_the_stage_that_it_was_in(
    kubeflow: Kubeflow, tmp_path: Path, stage: str
) -> None:
    uri, run_id = submitted(kubeflow, tmp_path)
    before = dict(kubeflow.execute(run_id, _at(stage, "terminate")).attempts)
    assert resume(uri, Where()) == run_id
    argo = kubeflow.execute(run_id)
    assert state_of(kubeflow, run_id) == "SUCCEEDED" and argo.exit_saw == ["FAILED", "SUCCEEDED"]
    assert argo.workflow_spec == {}, "what is adopted again is no longer told to stop"
    assert all(argo.attempts[task] == number for task, number in before.items() if task != stage)


@pytest.mark.parametrize("event", ["ok", "terminate", "evicted", "exit 75"])
@pytest.mark.parametrize("stage", PRETRAIN)
def test_an_hour_after_its_end_the_workflow_is_gone_and_the_run_stays(
    kubeflow: Kubeflow, tmp_path: Path, stage: str, event: str
) -> None:
    """However it ended; until then a person may look at it, and resume it."""
    _, run_id = submitted(kubeflow, tmp_path)
    argo = kubeflow.execute(run_id, _at(stage, event))
    argo.now_s += 3599
    assert argo.is_there
    argo.now_s += 2
    assert not argo.is_there and state_of(kubeflow, run_id) == ("SUCCEEDED" if event == "ok" else "FAILED")


@pytest.mark.parametrize("stage", ["plan", "index_shards", "snapshot", "decode", "train", "evaluate_shard",
                                   "summarize"])  # fmt: skip
def test_a_bucket_that_is_away_for_a_minute_is_waited_out_by_every_stage(
    s3: LocalS3, bucket_uri: str, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """What comes after it is the step's own answer: the plan, else that there is no run."""
    open_store(f"{bucket_uri}/slides").put("a.svs", b"never opened")
    waits: list[float] = []
    for name, value in (("RETRY_BASE_S", "0.002"), ("RETRY_CAP_S", "0.02"), ("STEP_PATIENCE_S", "1800")):
        monkeypatch.setenv(f"EOSIN_{name}", value)
    monkeypatch.setattr(step_process, "_say_waiting", lambda error, wait_s, left_s: waits.append(wait_s))
    monkeypatch.setattr(step_process, "_FIRST_PAUSE_S", 0.01)
    run = f"{bucket_uri}/runs/a"
    arguments: dict[str, tuple[Any, ...]] = {
        "plan": (steps.ConfigSource("demo", (), f"{bucket_uri}/slides"),),
        "index_shards": (1,), "snapshot": (1,), "decode": (0, 1), "train": ("jobset",),
        "evaluate_shard": (0, 1), "summarize": (),
    }  # fmt: skip
    with FaultProxy(s3.endpoint_url, lambda *_: Fault.RESET if len(waits) < 3 else Fault.NONE) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint_url)
        try:
            steps.as_step(getattr(steps, stage), run, *arguments[stage])
            code = 0
        except SystemExit as ended:
            code = int(str(ended.code))
    assert len(waits) == 3 and code == (0 if stage == "plan" else 2)


def test_each_row_of_the_documentations_tables_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "how-to" / "cluster.md").read_text()
    table = text[text.index("| event | plan |") : text.index("### Steps that fail")]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        for name in named:
            assert f"def {name}(" in sources, name
    events = " ".join(row.split("|")[1] for row in rows)
    there = ("Terminate", "delete the run", "delete a pod", "evict", "out of memory", "exit 75", "node gone",
             "API server", "bucket", "TTL")  # fmt: skip
    assert [event for event in there if event not in events] == []
