"""Training through a TrainJob and its TrainingRuntime, by the official client against a mock API server.

The tests play Trainer: the JobSet it makes bears the TrainJob's name and is owned by it.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eosin.cluster import cancel, launcher, live_state, names, training_runtime
from eosin.cluster.jobset import render_jobset
from eosin.cluster.names import TRAINJOB, jobset_name
from eosin.cluster.resources import with_digest
from eosin.cluster.trainjob import render_trainjob
from eosin.cluster.workflow import Launcher
from eosin.config import load_config
from eosin.errors import TransientError, UserError
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.records import TrainingDone
from eosin.storage import Store
from tests.support.api_server import JOBSETS, NAMESPACE, WORKFLOWS, ApiServer, serve
from tests.support.launched_run import launched_run

kmock = pytest.importorskip("kmock", reason="pip install kmock")

RUN = "s3://bucket/runs/trainer-run"
NAME = jobset_name(RUN)
IMAGE = "reg/eosin@sha256:1"
CONFIG = load_config(
    f"cluster: {{job_api: trainjob, image: '{IMAGE}', "
    "pools: [{name: anchor}, {name: spot, spot: true, max_nodes: 3}]}"
)
DONE = TrainingDone(num_steps=7, models=("step-00000007",), snapshot_id="s", config_digest=CONFIG.digest())
TRAINJOBS = "trainer.kubeflow.org/v1alpha1/trainjobs"
RUNTIMES = "trainer.kubeflow.org/v1alpha1/trainingruntimes"
OWNER = names.OwnerReference("argoproj.io/v1alpha1", "Workflow", "w", "w-uid")
TIMEOUT_S = 20.0


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with serve() as running:
        for resource in (TRAINJOBS, RUNTIMES):
            running.mock.resources[resource] = {}
        yield running


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    store = launched_run(tmp_path, CONFIG, monkeypatch)
    monkeypatch.setattr(launcher, "load_run", lambda uri, store=None: CONFIG)
    monkeypatch.setattr(launcher, "find_launcher", lambda cluster: Launcher(workflow="w", owner=OWNER))
    monkeypatch.setattr(training_runtime, "_SEEN_S", 0.0)
    return store


def eventually(condition: Callable[[], Any]) -> Any:
    waited = threading.Event()
    for _ in range(int(TIMEOUT_S / 0.05)):
        if found := condition():
            return found
        waited.wait(0.05)
    raise AssertionError("it did not come to pass")


def launched(server: ApiServer, store: Store) -> Callable[[], Any]:
    """Start the launcher in a thread; what is returned waits for its result or error."""
    box: list[Any] = []

    def train() -> None:
        log = RunLog("launch", store)
        try:
            box.append(launcher.train_on_cluster(RUN, log=log, cluster=server.cluster))
        except BaseException as error:
            box.append(error)
        finally:
            log.flush()

    thread = threading.Thread(target=train, daemon=True)
    thread.start()

    def join() -> Any:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive(), "the launcher did not end"
        return box[0]

    return join


def there(server: ApiServer, plural: str) -> dict[str, Any] | None:
    return server.cluster.get(TRAINJOB if plural == TRAINJOB.plural else names.RUNTIME, NAME)


def job(server: ApiServer) -> dict[str, Any]:
    found: dict[str, Any] = eventually(lambda: there(server, "trainjobs"))
    return found


def patch(server: ApiServer, body: dict[str, Any]) -> None:
    server.cluster.patch(TRAINJOB, NAME, body)


def end(server: ApiServer, state: str, message: str = "") -> None:
    ended = {"type": state, "status": "True", "reason": "Test", "message": message}
    suspended = {"type": "Suspended", "status": "False", "reason": "Resumed", "message": ""}
    patch(server, {"status": {"conditions": [suspended, ended]}})


def ends_well(server: ApiServer, store: Store, join: Callable[[], Any]) -> None:
    """Training ends, the TrainJob is complete, and the launcher that `join` waits for says so."""
    store.put(RunLayout.TRAINING_DONE, DONE.to_json())
    end(server, "Complete")
    assert join() == DONE


def before(server: ApiServer, image: str = IMAGE) -> None:
    """What an earlier launcher made, and Trainer of it."""
    runtime, train_job = render_trainjob(CONFIG, RUN, image=image, namespace=NAMESPACE, owner=OWNER)
    runtime, train_job = with_digest(runtime), with_digest(train_job, runtime["spec"])
    runtime["metadata"]["uid"], train_job["metadata"]["uid"] = "runtime-before", "before"
    server.add(RUNTIMES, runtime)
    server.add(TRAINJOBS, train_job)
    jobset = render_jobset(CONFIG, RUN, image=image, namespace=NAMESPACE)
    owner = names.OwnerReference(train_job["apiVersion"], "TrainJob", NAME, "before").manifest()
    server.add(JOBSETS, {**jobset, "metadata": {**jobset["metadata"], "ownerReferences": [owner]}})


def order(server: ApiServer, method: str) -> list[str]:
    """Plurals of Trainer's objects in the order in which the launcher sent `method` for them."""
    # /apis/GROUP/VERSION/namespaces/NAMESPACE/PLURAL[/NAME]
    sent = server.requests(method, "/apis/trainer.kubeflow.org/")
    return [str(each.url.path).split("/")[6] for each in sent]


def test_runtime_then_trainjob_followed_to_its_end(server: ApiServer, run: Store) -> None:
    join = launched(server, run)
    made = job(server)
    ends_well(server, run, join)
    assert order(server, "post") == ["trainingruntimes", "trainjobs"]
    runtime = there(server, "trainingruntimes")
    assert runtime is not None
    assert made["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"] == NAME
    assert made["metadata"]["ownerReferences"] == runtime["metadata"]["ownerReferences"] == [OWNER.manifest()]
    assert server.requests("post", "/jobsets") == server.requests("delete", "/") == []
    (budget,) = server.requests("post", "/poddisruptionbudgets")
    assert budget.data["metadata"]["ownerReferences"][0]["kind"] == "TrainJob"


def test_restarted_launcher_adopts_both(server: ApiServer, run: Store) -> None:
    before(server, image="reg/eosin@sha256:0")
    join = launched(server, run)
    eventually(lambda: server.requests("get", "/pods"))
    ends_well(server, run, join)
    assert job(server)["metadata"]["uid"] == "before"
    assert server.requests("delete", "/") == []
    found = [json.loads(line) for info in run.list("logs/") for line in run.get(info.key).splitlines()]
    (adopted,) = [event for event in found if event["event"] == "jobset-adopted"]
    assert "delete it to apply" in adopted["note"]


def test_runtime_that_leaves_after_its_trainjob_is_not_waited_for(server: ApiServer, run: Store) -> None:
    """Someone was killed between deleting the runtime, which Trainer keeps for now, and the TrainJob."""
    before(server)
    server.cluster.patch(names.RUNTIME, NAME, {
        "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})  # fmt: skip
    join = launched(server, run)
    eventually(lambda: server.requests("get", "/pods"))
    ends_well(server, run, join)
    assert server.requests("delete", "/") == []


def test_launcher_killed_between_the_two_goes_on(server: ApiServer, run: Store) -> None:
    before(server)
    for resource in (TRAINJOBS, JOBSETS):
        server.mock.objects[resource, NAMESPACE, NAME].delete()
    join = launched(server, run)
    job(server)
    ends_well(server, run, join)
    assert server.requests("delete", "/") == []
    runtime = there(server, "trainingruntimes")
    assert runtime is not None and runtime["metadata"]["uid"] == "runtime-before"


def test_runtime_of_an_older_image_without_its_trainjob_is_replaced(server: ApiServer, run: Store) -> None:
    before(server, image="reg/eosin@sha256:0")
    for resource in (TRAINJOBS, JOBSETS):
        server.mock.objects[resource, NAMESPACE, NAME].delete()
    join = launched(server, run)
    job(server)
    ends_well(server, run, join)
    (deleted,) = server.requests("delete", "/")
    assert deleted.data["preconditions"]["uid"] == "runtime-before"
    assert IMAGE in json.dumps(there(server, "trainingruntimes"))


def test_failed_attempt_is_replaced_with_its_runtime(server: ApiServer, run: Store) -> None:
    before(server, image="reg/eosin@sha256:0")
    end(server, "Failed")
    join = launched(server, run)
    eventually(lambda: (found := there(server, "trainjobs")) and found["metadata"].get("uid") != "before")
    ends_well(server, run, join)
    assert order(server, "delete") == ["trainjobs", "trainingruntimes"]
    assert IMAGE in json.dumps(there(server, "trainingruntimes"))


@pytest.mark.parametrize("resource", [TRAINJOBS, RUNTIMES])
def test_somebody_elses_is_left_alone(server: ApiServer, run: Store, resource: str) -> None:
    theirs = {"metadata": {"name": NAME, "uid": "theirs"}, "spec": {}}
    server.add(resource, theirs)
    with pytest.raises(UserError, match="belongs to something else"):
        launcher.train_on_cluster(RUN, log=RunLog("launch"), cluster=server.cluster)
    assert server.requests("delete", "/") == []


def test_jobset_of_the_same_run_is_not_taken_over(server: ApiServer, run: Store) -> None:
    server.add(JOBSETS, render_jobset(CONFIG, RUN, image=IMAGE, namespace=NAMESPACE))
    with pytest.raises(UserError, match=r"JobSet .* is there already") as caught:
        launcher.train_on_cluster(RUN, log=RunLog("launch"), cluster=server.cluster)
    assert "eosin cancel" in caught.value.hint
    assert order(server, "post") == []


def test_failure_is_told_as_that_of_a_jobset(server: ApiServer, run: Store) -> None:
    join = launched(server, run)
    job(server)
    over = {"exitCode": 42, "reason": "Error", "finishedAt": "2026-01-01T00:00:09Z"}
    pod = server.pod(NAME, "anchor", phase="Failed", containerStatuses=[
        {"name": "node", "state": {"terminated": over}}])  # fmt: skip
    server.log(pod, json.dumps({"event": "error", "message": "unknown key train.lr", "hint": "lr"}) + "\n")
    end(server, "Failed", "jobset failed")
    error = join()
    assert isinstance(error, UserError)
    assert error.message == (
        f"training failed: pod {pod} exited with 42 (configuration error): unknown key train.lr"
    )


def test_failure_without_a_pod_names_the_trainjobs_condition(server: ApiServer, run: Store) -> None:
    join = launched(server, run)
    job(server)
    end(server, "Failed", "DeadlineExceeded")
    error = join()
    assert "TrainJob" in error.message and "DeadlineExceeded" in error.message
    assert f"describe trainjob {NAME}" in error.hint


def test_cluster_without_trainer_says_what_to_install(server: ApiServer, run: Store) -> None:
    path = f"post /apis/{TRAINJOB.group}/{TRAINJOB.version}/namespaces/{NAMESPACE}/trainingruntimes"
    server.mock[path] << kmock.Response(status=404, payload={"message": "no"})
    with pytest.raises(UserError, match="no API of Kubeflow Trainer") as caught:
        launcher.train_on_cluster(RUN, log=RunLog("launch"), cluster=server.cluster)
    assert "cluster.job_api" in caught.value.hint


def test_cancel_and_live_state(server: ApiServer, run: Store) -> None:
    assert live_state.live_state(RUN, cluster=server.cluster) is None
    before(server)
    shared = {"metadata": {"name": "torch-distributed", "uid": "shared"}, "spec": {}}
    server.add(RUNTIMES, shared)
    server.add(WORKFLOWS, {"metadata": {"name": "w", "uid": "w-uid"}, "spec": {"entrypoint": "x"}})
    server.pod(NAME, "anchor", phase="Running")
    state = live_state.live_state(RUN, cluster=server.cluster)
    assert str(state) == f"TrainJob {NAME}: running · anchor 1 running"
    stopped = cancel.cancel_on_cluster(RUN, server.cluster)
    assert str(stopped) == f"TrainJob {NAME} and Workflow w stopped"
    assert there(server, "trainjobs") is there(server, "trainingruntimes") is None
    assert len(server.requests("delete", "/")) == 2, "the JobSet is Trainer's to remove, other runtimes stay"


@pytest.mark.parametrize("cancelled", [True, False])
def test_sigterm_deletes_when_cancelled_and_leaves_when_evicted(
    server: ApiServer, run: Store, cancelled: bool
) -> None:
    spec = {"shutdown": "Terminate"} if cancelled else {}
    server.add(WORKFLOWS, {"metadata": {"name": "w", "uid": "w-uid"}, "spec": spec})

    def stop_once_running() -> None:
        eventually(lambda: server.requests("get", "/pods"))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_once_running, daemon=True).start()
    with pytest.raises(UserError if cancelled else TransientError, match="TrainJob"):
        launcher.train_on_cluster(RUN, log=RunLog("launch"), cluster=server.cluster)
    assert (there(server, "trainjobs") is None) is cancelled
    assert (there(server, "trainingruntimes") is None) is cancelled
