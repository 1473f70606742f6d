"""Spot pools as Jobs beside the JobSet: made, adopted and removed together with it."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eosin.cluster import finish, launcher, names
from eosin.cluster.api import Cluster
from eosin.cluster.jobset import render_jobset
from eosin.cluster.names import jobset_name
from eosin.cluster.spot_jobs import ensure_spot_jobs, remove_spot_jobs, render_spot_jobs
from eosin.cluster.workflow import Launcher
from eosin.config import load_config
from eosin.errors import TransientError, UserError
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.records import TrainingDone
from eosin.storage import Store
from tests.support.api_server import JOBSETS, NAMESPACE, ApiServer, serve
from tests.support.launched_run import launched_run

pytest.importorskip("kmock", reason="pip install kmock")

JOBS = "batch/v1/jobs"
RUN = "s3://bucket/runs/spot-run"
NAME = jobset_name(RUN)
IMAGE = "reg/eosin@sha256:1"
CONFIG = load_config(
    f"cluster: {{image: '{IMAGE}', queue: gpus, spot_as: elastic-job, "
    "pools: [{name: anchor}, {name: spot, spot: true, max_nodes: 3}, {name: spot2, spot: true}]}"
)
DONE = TrainingDone(num_steps=7, models=("step-00000007",), snapshot_id="s", config_digest=CONFIG.digest())
BOTH = {f"{NAME}-spot", f"{NAME}-spot2"}
TIMEOUT_S = 20.0


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with serve() as running:
        running.mock.resources[JOBS] = {}
        yield running


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return launched_run(tmp_path, CONFIG, monkeypatch)


def jobset(**metadata: Any) -> dict[str, Any]:
    manifest = render_jobset(CONFIG, RUN, image=IMAGE, namespace=NAMESPACE)
    manifest["metadata"] |= {"uid": "now", **metadata}
    return manifest


def wanted(owner: dict[str, Any]) -> list[dict[str, Any]]:
    return render_spot_jobs(CONFIG, RUN, image=IMAGE, jobset=owner)


def add_jobs(server: ApiServer, owner: dict[str, Any], **metadata: Any) -> None:
    for job in wanted(owner):
        job["metadata"] |= {"uid": f"{job['metadata']['name']}-of-{owner['metadata']['uid']}", **metadata}
        server.add(JOBS, job)


def there(server: ApiServer) -> dict[str, dict[str, Any]]:
    return {job["metadata"]["name"]: job for job in server.cluster.list_objects(names.JOB)}


def train(server: ApiServer, run: Store) -> tuple[threading.Thread, list[Any]]:
    result: list[Any] = []

    def body() -> None:
        try:
            result.append(launcher.train_on_cluster(RUN, log=RunLog("launch", run), cluster=server.cluster))
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread, result


def eventually(condition: Callable[[], Any]) -> Any:
    waited = threading.Event()
    for _ in range(int(TIMEOUT_S / 0.05)):
        if found := condition():
            return found
        waited.wait(0.05)
    raise AssertionError("it did not come to pass")


def test_made_with_the_jobset_and_gone_when_training_is_over(server: ApiServer, run: Store) -> None:
    server.add(JOBSETS, jobset())  # the mock gives no uid to what is made
    thread, result = train(server, run)
    eventually(lambda: there(server).keys() == BOTH)
    owners = [job["metadata"]["ownerReferences"][0]["uid"] for job in there(server).values()]
    assert owners == ["now", "now"]
    run.put(RunLayout.TRAINING_DONE, DONE.to_json())
    server.end(NAME, "Completed")
    thread.join(TIMEOUT_S)
    assert result == [DONE] and there(server) == {}
    assert server.cluster.get(names.JOBSET, NAME), "the JobSet itself stays for its time to live"


def test_gone_as_well_when_training_fails(server: ApiServer, run: Store) -> None:
    server.add(JOBSETS, jobset())
    thread, result = train(server, run)
    eventually(lambda: there(server).keys() == BOTH)
    server.end(NAME, "Failed", "no pod is left")
    thread.join(TIMEOUT_S)
    assert isinstance(result[0], Exception) and there(server) == {}


def test_a_restarted_launcher_adopts_what_is_there_and_makes_what_lacks(server: ApiServer) -> None:
    owner = jobset()
    add_jobs(server, owner)
    server.mock.objects[JOBS, NAMESPACE, f"{NAME}-spot2"].delete()
    ensure_spot_jobs(server.cluster, wanted(owner), log=RunLog("launch"))
    jobs = there(server)
    assert jobs.keys() == BOTH and jobs[f"{NAME}-spot"]["metadata"]["uid"] == f"{NAME}-spot-of-now"


def test_one_of_an_earlier_jobset_is_replaced(server: ApiServer) -> None:
    add_jobs(server, jobset(uid="before"))
    ensure_spot_jobs(server.cluster, wanted(jobset()), log=RunLog("launch"), sleep=lambda _: None)
    owners = {job["metadata"]["ownerReferences"][0]["uid"] for job in there(server).values()}
    assert owners == {"now"}
    assert {each.data["preconditions"]["uid"] for each in server.requests("delete", "/jobs/")} == {
        f"{name}-of-before" for name in BOTH
    }


def test_somebody_elses_job_is_left_alone(server: ApiServer) -> None:
    add_jobs(server, jobset(), annotations={names.RUN_ANNOTATION: "s3://other/run"})
    with pytest.raises(UserError, match="belongs to s3://other/run"):
        ensure_spot_jobs(server.cluster, wanted(jobset()), log=RunLog("launch"))
    assert server.requests("delete", "/jobs/") == []


def test_jobs_of_another_jobset_are_not_removed(server: ApiServer) -> None:
    add_jobs(server, jobset(uid="later"))
    assert remove_spot_jobs(server.cluster, jobset()) == [] and there(server).keys() == BOTH


def test_cancel_takes_them_along(server: ApiServer, run: Store) -> None:
    server.add(JOBSETS, jobset())
    add_jobs(server, jobset())
    assert finish.cancel_on_cluster(RUN, server.cluster).jobset == NAME
    assert there(server) == {} and server.cluster.get(names.JOBSET, NAME) is None


@pytest.mark.parametrize(("cancelled", "left"), [(True, set()), (False, BOTH)])
def test_sigterm_removes_them_only_where_the_run_was_cancelled(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, cancelled: bool, left: set[str]
) -> None:
    server.add(JOBSETS, jobset())
    add_jobs(server, jobset())
    monkeypatch.setattr(Launcher, "was_cancelled", lambda self, cluster: cancelled)
    error = launcher._terminated(RUN, server.cluster, Launcher(), RunLog("launch"))
    assert isinstance(error, UserError if cancelled else TransientError) and there(server).keys() == left


def test_what_a_launcher_killed_at_the_end_left_behind_is_removed(server: ApiServer, run: Store) -> None:
    server.add(JOBSETS, jobset())
    add_jobs(server, jobset())
    run.put(RunLayout.TRAINING_DONE, DONE.to_json())
    run.put(RunLayout.teacher_card(DONE.models[-1]), b"{}")
    run.put(RunLayout.teacher_weights(DONE.models[-1]), b"weights")
    assert launcher.train_on_cluster(RUN, log=RunLog("launch", run), cluster=server.cluster) == DONE
    assert there(server) == {}


def test_no_cluster_in_reach_is_no_reason_to_train_again(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from kubernetes import client

    run.put(RunLayout.TRAINING_DONE, DONE.to_json())
    run.put(RunLayout.teacher_card(DONE.models[-1]), b"{}")
    run.put(RunLayout.teacher_weights(DONE.models[-1]), b"weights")
    settings = client.Configuration()
    settings.host, settings.retries = "http://127.0.0.1:9", False
    away = Cluster(client.ApiClient(settings), NAMESPACE, sleep=lambda _: None)
    assert launcher.train_on_cluster(RUN, log=RunLog("launch", run), cluster=away) == DONE
