"""Submitting and following a JobSet, through the official client against a mock API server."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from eosin.cluster import finish, follow, launcher, live_state, names, training
from eosin.cluster.api import Missing
from eosin.cluster.follow import Follower
from eosin.cluster.jobset import render_jobset
from eosin.cluster.names import jobset_name
from eosin.cluster.pod_logs import PodLogMirror
from eosin.cluster.training import Submission, submit_training
from eosin.cluster.workflow import Launcher, find_launcher
from eosin.config import load_config
from eosin.errors import PermanentError, TransientError, UserError
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.records import KubeflowRun, TrainingDone
from eosin.runs import change_course
from eosin.storage import Store
from tests.support.api_server import JOBSETS, NAMESPACE, WORKFLOWS, ApiServer, serve
from tests.support.launched_run import launched_run

kmock = pytest.importorskip("kmock", reason="pip install kmock")

RUN = "s3://bucket/runs/spot-run"
NAME = jobset_name(RUN)
CONFIG = load_config(
    "cluster: {image: 'reg/eosin@sha256:1', stuck_timeout_s: 1, "
    "pools: [{name: anchor}, {name: spot, spot: true, max_nodes: 3}]}"
)
DONE = TrainingDone(num_steps=7, models=("step-00000007",), snapshot_id="s", config_digest=CONFIG.digest())
TIMEOUT_S = 20.0


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with serve() as running:
        yield running


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return launched_run(tmp_path, CONFIG, monkeypatch)


class Training:
    """`train_on_cluster` in a thread."""

    def __init__(self, server: ApiServer, log: RunLog) -> None:
        self.result: Any = None
        self._thread = threading.Thread(target=self._train, args=(server, log), daemon=True)
        self._thread.start()

    def _train(self, server: ApiServer, log: RunLog) -> None:
        try:
            self.result = launcher.train_on_cluster(RUN, log=log, cluster=server.cluster)
        except BaseException as error:
            self.result = error
        finally:
            log.flush()

    def join(self) -> Any:
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive(), "the launcher did not end"
        return self.result


def eventually(condition: Callable[[], Any]) -> Any:
    waited = threading.Event()
    for _ in range(int(TIMEOUT_S / 0.05)):
        found = condition()
        if found:
            return found
        waited.wait(0.05)
    raise AssertionError("it did not come to pass")


def made(server: ApiServer) -> dict[str, Any]:
    return eventually(lambda: server.cluster.get(names.JOBSET, NAME))


def events(store: Store, source: str = "") -> list[dict[str, Any]]:
    found = [json.loads(line) for info in store.list("logs/") for line in store.get(info.key).splitlines()]
    return [event for event in found if event["source"].startswith(source)]


def live(server: ApiServer, **metadata: Any) -> dict[str, Any]:
    manifest = render_jobset(CONFIG, RUN, image="reg/eosin@sha256:1", namespace=NAMESPACE)
    manifest["metadata"] |= {"uid": "before", **metadata}
    server.add(JOBSETS, manifest)
    return manifest


def test_created_followed_to_its_end_and_read_from_the_bucket(server: ApiServer, run: Store) -> None:
    training = Training(server, RunLog("launch", run))
    assert made(server)["metadata"]["annotations"][names.RUN_ANNOTATION] == RUN
    run.put(RunLayout.TRAINING_DONE, DONE.to_json())
    server.end(NAME, "Completed")
    assert training.join() == DONE
    (budget,) = server.requests("post", "/poddisruptionbudgets")
    assert budget.data["metadata"]["ownerReferences"][0]["kind"] == "JobSet"
    assert server.requests("delete", "/jobsets") == []


def test_training_that_has_ended_touches_no_cluster(server: ApiServer, run: Store) -> None:
    run.put(RunLayout.TRAINING_DONE, DONE.to_json())
    run.put(RunLayout.teacher_card(DONE.models[-1]), b"{}")
    run.put(RunLayout.teacher_weights(DONE.models[-1]), b"weights")
    assert launcher.train_on_cluster(RUN, log=RunLog("launch"), cluster=server.cluster) == DONE
    assert list(server.mock) == []


def test_a_run_that_is_prolonged_after_its_end_gets_pods_of_its_own(
    server: ApiServer, run: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.put(RunLayout.TRAINING_DONE, DONE.to_json())
    run.put(RunLayout.teacher_card(DONE.models[-1]), b"{}")
    run.put(RunLayout.teacher_weights(DONE.models[-1]), b"weights")
    run.put(RunLayout.checkpoint_marker(7), b"{}")
    live(server)
    server.end(NAME, "Completed")  # of the training until now: it must not be taken for the rest
    monkeypatch.setattr("eosin.runs.open_store", lambda uri: run)
    course = change_course(RUN, ["train.num_steps=150000"])
    training = Training(server, RunLog("launch", run))
    eventually(lambda: made(server)["metadata"].get("uid") != "before")
    done = DONE.model_copy(update={"num_steps": 150000, "config_digest": course.digest()})
    run.put(RunLayout.TRAINING_DONE, done.to_json())
    server.end(NAME, "Completed")
    assert training.join() == done
    assert [event["jobset"] for event in events(run) if event["event"] == "jobset-replaced"] == [NAME]


def test_teachers_deleted_after_the_end_are_made_again_by_pods(server: ApiServer, run: Store) -> None:
    done = DONE.model_copy(update={"models": ("step-00000010", "step-00000020")})
    run.put(RunLayout.TRAINING_DONE, done.to_json())
    for name in done.models:
        run.put(RunLayout.teacher_card(name), b"{}")
    run.put(RunLayout.teacher_weights(done.models[0]), b"weights")
    live(server)
    server.end(NAME, "Completed")  # of the training itself: it must not be taken for the making again
    training = Training(server, RunLog("launch", run))
    eventually(lambda: made(server)["metadata"].get("uid") != "before")
    run.put(RunLayout.teacher_weights(done.models[1]), b"weights")
    server.end(NAME, "Completed")
    assert training.join() == done
    assert [event["models"] for event in events(run) if event["event"] == "missing-teachers"] == [
        ["step-00000020"]
    ]


def test_a_teacher_that_nothing_can_make_again_takes_no_gpu(server: ApiServer, run: Store) -> None:
    done = DONE.model_copy(update={"models": ("step-00000010", "step-00000020")})
    run.put(RunLayout.TRAINING_DONE, done.to_json())
    run.put(RunLayout.teacher_card(done.models[1]), b"{}")
    run.put(RunLayout.teacher_weights(done.models[1]), b"weights")
    assert launcher.train_on_cluster(RUN, log=RunLog("launch"), cluster=server.cluster) == done
    assert list(server.mock) == []


def test_run_that_was_never_indexed_takes_no_gpu(server: ApiServer, run: Store) -> None:
    run.delete([RunLayout.INDEX_PIN])
    with pytest.raises(UserError, match="no index"):
        launcher.train_on_cluster(RUN, log=RunLog("launch"), cluster=server.cluster)
    assert list(server.mock) == []


def test_the_cluster_presets_what_the_run_leaves_open(server: ApiServer, run: Store) -> None:
    section = "{queue: gpus, stuck_timeout_s: 5, pools: [{name: other}], s3: {secret: keys}}"
    server.add("v1/configmaps", {"metadata": {"name": "eosin-cluster"}, "data": {"cluster.yaml": section}})
    training = Training(server, RunLog("launch", run))
    jobset = made(server)
    run.put(RunLayout.TRAINING_DONE, DONE.to_json())
    server.end(NAME, "Completed")
    assert training.join() == DONE
    assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert [job["name"] for job in jobset["spec"]["replicatedJobs"]] == ["rdzv", "anchor", "spot"]
    agent = jobset["spec"]["replicatedJobs"][1]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert agent["envFrom"] == [{"secretRef": {"name": "keys"}}]


def test_misspelt_preset_is_named(server: ApiServer, run: Store) -> None:
    server.add(
        "v1/configmaps", {"metadata": {"name": "eosin-cluster"}, "data": {"cluster.yaml": "{quue: gpus}"}}
    )
    with pytest.raises(UserError, match=r"ConfigMap pathology/eosin-cluster.*cluster\.queue"):
        launcher.train_on_cluster(RUN, log=RunLog("launch"), cluster=server.cluster)


def test_restarted_launcher_adopts_what_is_running(server: ApiServer, run: Store) -> None:
    live(server)
    training = Training(server, RunLog("launch", run))
    eventually(lambda: server.requests("get", f"/jobsets/{NAME}"))
    run.put(RunLayout.TRAINING_DONE, DONE.to_json())
    server.end(NAME, "Completed")
    assert training.join() == DONE
    assert len(server.requests("post", "/jobsets")) == 1
    assert server.requests("delete", "/jobsets") == []
    assert [event["event"] for event in events(run, "launch")][:1] == ["jobset-adopted"]


def test_a_pod_that_a_dead_node_keeps_is_told_with_the_cure(
    server: ApiServer, run: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_state, "open_store", lambda uri: run)
    live(server)
    for job, ended in (("spot", "2026-01-01T00:00:00Z"), ("anchor", datetime.now(UTC).isoformat())):
        name = server.pod(NAME, job, phase="Running")
        pod = server.cluster.get_pod(name)
        pod["metadata"]["deletionTimestamp"], pod["spec"]["nodeName"] = ended, "node-7"
        server.add("v1/pods", pod)
    state = live_state.live_state(RUN, cluster=server.cluster)
    assert state is not None and list(state.stuck) == [f"{NAME}-spot-0-0-x7k2p"]
    assert "kubectl taint node node-7 node.kubernetes.io/out-of-service" in str(state)
    assert state.pods == {"anchor": {"Terminating": 1}, "spot": {"Terminating": 1}}


@pytest.mark.parametrize("dispatched", [False, True], ids=["here", "by-multikueue"])
def test_the_jobset_says_how_far_training_is_and_that_it_is_followed(
    server: ApiServer, run: Store, dispatched: bool
) -> None:
    """MultiKueue copies annotations once: a stale one would have the watcher there end the training."""
    step = {"time": "2026-01-01T00:00:09Z", "event": "step", "step": 20, "num_steps": 100,
            "images_per_s": 61.23, "eta_s": 3725.0, "loss": 6.1}  # fmt: skip
    text = "\n".join(json.dumps(each) for each in ({**step, "step": 10}, step, {"event": "saved"}))
    run.put(RunLayout.log("train", "20260101T000000"), f"{text}\nhalf a li".encode())
    live(server)
    if dispatched:
        server.patch_jobset(NAME, {"spec": {"managedBy": "kueue.x-k8s.io/multikueue"}})
    training = Training(server, RunLog("launch", run))

    def annotations() -> dict[str, str]:
        found = made(server)["metadata"]["annotations"]
        return dict(found) if names.PROGRESS_ANNOTATION in found else {}

    noted = eventually(annotations)
    assert noted[names.PROGRESS_ANNOTATION] == (
        "step 20/100 · 61.2 images/s · 1:02 h left · 2026-01-01T00:00:09Z"
    )
    assert (names.FOLLOWED_ANNOTATION in noted) is not dispatched
    run.put(RunLayout.TRAINING_DONE, DONE.to_json())
    server.end(NAME, "Completed")
    assert training.join() == DONE


def test_spot_jobs_beside_a_jobset_that_multikueue_dispatches_are_refused(server: ApiServer) -> None:
    text = "cluster: {queue: q, spot_as: elastic-job, pools: [{name: anchor}, {name: spot, spot: true}]}"
    config = load_config(text + "\ntrain: {num_microbatches: 64}")
    image = "reg/eosin@sha256:1"
    jobset = render_jobset(config, RUN, image=image, namespace=NAMESPACE)
    jobset["spec"]["managedBy"] = "kueue.x-k8s.io/multikueue"
    server.add(JOBSETS, jobset)
    asked = Submission(config, RUN, image, None, RunLog("launch"), lambda: False)
    with pytest.raises(UserError, match="other clusters"):
        submit_training(server.cluster, asked)
    assert server.requests("delete", "/jobsets") and not server.requests("post", "/jobs/")


def test_failed_attempt_is_replaced(server: ApiServer, run: Store) -> None:
    live(server)
    server.end(NAME, "Failed")
    training = Training(server, RunLog("launch", run))
    eventually(lambda: (server.cluster.get(names.JOBSET, NAME) or {"status": 1}).get("status") is None)
    run.put(RunLayout.TRAINING_DONE, DONE.to_json())
    server.end(NAME, "Completed")
    assert training.join() == DONE
    (deleted,) = server.requests("delete", "/jobsets")
    assert deleted.data["propagationPolicy"] == "Foreground"
    assert deleted.data["preconditions"]["uid"] == "before"


def test_somebody_elses_jobset_is_left_alone(server: ApiServer, run: Store) -> None:
    live(server, annotations={names.RUN_ANNOTATION: "s3://other/run"})
    with pytest.raises(UserError, match="belongs to s3://other/run"):
        launcher.train_on_cluster(RUN, log=RunLog("launch"), cluster=server.cluster)
    assert server.requests("delete", "/jobsets") == []


def test_changed_placement_is_said_when_an_older_one_is_adopted(server: ApiServer, run: Store) -> None:
    for tag in ("1", "1", "2"):
        with RunLog("launch", run) as log:
            asked = Submission(CONFIG, RUN, f"reg/eosin@sha256:{tag}", None, log, lambda: False)
            submit_training(server.cluster, asked)
    made_, same, changed = events(run, "launch")
    assert made_["event"] == "jobset-created"
    assert "note" not in same
    assert "delete it to apply" in changed["note"]


def test_failure_is_one_sentence_with_pod_code_words_and_cure(server: ApiServer, run: Store) -> None:
    training = Training(server, RunLog("launch", run))
    made(server)
    end = {"exitCode": 42, "reason": "Error", "finishedAt": "2026-01-01T00:00:09Z"}
    late = {"exitCode": 1, "reason": "Error", "finishedAt": "2026-01-01T00:00:01Z"}
    bad = server.pod(NAME, "anchor", phase="Failed", containerStatuses=[
        {"name": "trainer", "state": {"terminated": end}}])  # fmt: skip
    other = server.pod(NAME, "spot", phase="Failed", containerStatuses=[
        {"name": "trainer", "state": {"terminated": late}}])  # fmt: skip
    said = {"event": "error", "message": "unknown key train.lr", "hint": "train.optimizer.lr"}
    server.log(bad, f"2026-01-01T00:00:01Z starting\n{json.dumps(said)}\n")
    server.log(other, "2026-01-01T00:00:01Z gone\n")
    server.end(NAME, "Failed")
    error = training.join()
    assert isinstance(error, UserError)
    assert (
        error.message
        == f"training failed: pod {bad} exited with 42 (configuration error): unknown key train.lr"
    )
    assert error.hint == "train.optimizer.lr"


def test_failure_without_a_pod_left_names_the_condition(server: ApiServer, run: Store) -> None:
    training = Training(server, RunLog("launch", run))
    made(server)
    server.end(NAME, "Failed", "jobset failed due to reaching max number of restarts")
    error = training.join()
    assert isinstance(error, PermanentError)
    assert "max number of restarts" in error.message


def test_completed_without_a_result_is_an_error(server: ApiServer, run: Store) -> None:
    training = Training(server, RunLog("launch", run))
    made(server)
    server.end(NAME, "Completed")
    error = training.join()
    assert isinstance(error, PermanentError)
    assert "training.json" in error.message


def test_deleted_while_training_can_be_run_again(server: ApiServer, run: Store) -> None:
    training = Training(server, RunLog("launch", run))
    made(server)
    server.cluster.delete(names.JOBSET, made(server))
    error = training.join()
    assert isinstance(error, TransientError)
    assert "deleted" in error.message


@pytest.mark.parametrize(
    "broken",
    [
        {
            "type": "ERROR",
            "object": {"code": 410, "reason": "Expired", "message": "too old resource version"},
        },
        {"type": "ERROR", "object": {"code": 500, "reason": "Internal", "message": "etcd is away"}},
        b'{"type": "MODIFIED", "obj',
        b"",
    ],
    ids=["expired", "server-error", "cut-in-the-middle", "closed-at-once"],
)
def test_broken_watch_is_resumed_from_a_fresh_read(server: ApiServer, broken: Any) -> None:
    live(server)
    server.mock[kmock.action.WATCH][:2] << broken
    naps: list[float] = []
    seen: list[Any] = []
    for state in follow.states(server.cluster, NAME, idle_s=5, sleep=naps.append):
        seen.append(state)
        if len(seen) == 3:
            server.end(NAME, "Completed")
    assert training.terminal_state(seen[-1]) == "Completed"
    assert len(server.requests("get", f"/jobsets/{NAME}")) >= 3
    assert naps == [1.0, 1.0]


def test_server_that_is_away_for_a_while_ends_no_training(server: ApiServer, run: Store) -> None:
    live(server)
    server.mock[f"get /api/v1/namespaces/{NAMESPACE}/pods"][:5] << 503
    path = f"get /apis/jobset.x-k8s.io/v1alpha2/namespaces/{NAMESPACE}/jobsets/{NAME}"
    server.mock[path][1:12] << 503
    naps: list[float] = []
    follower = Follower(server.cluster, PodLogMirror(server.cluster, run), RunLog("launch", run), 60)
    for seen, state in enumerate(follow.states(server.cluster, NAME, idle_s=1, sleep=naps.append)):
        assert state is not None
        follower._observe_if_possible(state)
        if seen == 1:
            server.end(NAME, "Completed")
    assert training.terminal_state(state) == "Completed"
    assert naps.count(10.0) == 2


def test_server_that_never_comes_back_is_given_up_on(server: ApiServer) -> None:
    server.mock[f"get /apis/jobset.x-k8s.io/v1alpha2/namespaces/{NAMESPACE}/jobsets/{NAME}"] << 503
    naps: list[float] = []
    with pytest.raises(TransientError):
        next(follow.states(server.cluster, NAME, sleep=naps.append))
    assert sum(naps) == 1800


def test_busy_server_is_asked_again(server: ApiServer) -> None:
    live(server)
    path = f"get /apis/jobset.x-k8s.io/v1alpha2/namespaces/{NAMESPACE}/jobsets/{NAME}"
    server.mock[path][:1] << 503
    server.mock[path][1:2] << 429
    found = server.cluster.get(names.JOBSET, NAME)
    assert found is not None
    assert len(server.requests("get", "/jobsets/")) == 3


def test_server_that_stays_away_is_transient(server: ApiServer) -> None:
    server.mock["get /version/"] << 503
    with pytest.raises(TransientError, match="503"):
        server.cluster.server_version()


def test_forbidden_is_the_users_to_mend_and_not_retried(server: ApiServer, run: Store) -> None:
    body = {"kind": "Status", "message": 'jobsets is forbidden: User "kfp" cannot create'}
    server.mock[f"post /apis/jobset.x-k8s.io/v1alpha2/namespaces/{NAMESPACE}/jobsets"] << kmock.Response(
        status=403, payload=body
    )
    with pytest.raises(UserError, match='User "kfp" cannot create') as caught:
        launcher.train_on_cluster(RUN, log=RunLog("launch"), cluster=server.cluster)
    assert "Role" in caught.value.hint
    assert len(server.requests("post", "/jobsets")) == 1


def test_cluster_without_jobset_says_what_to_install(server: ApiServer, run: Store) -> None:
    server.mock[f"post /apis/jobset.x-k8s.io/v1alpha2/namespaces/{NAMESPACE}/jobsets"] << kmock.Response(
        status=404, payload={"message": "no"}
    )
    with pytest.raises(UserError, match="no JobSet API") as caught:
        launcher.train_on_cluster(RUN, log=RunLog("launch"), cluster=server.cluster)
    assert "manifests/prerequisites" in caught.value.hint


def test_image_that_cannot_be_pulled_frees_the_gpus(server: ApiServer, run: Store, monkeypatch: Any) -> None:
    training = Training(server, RunLog("launch", run))
    made(server)
    waiting = {"reason": "ImagePullBackOff", "message": "not found"}
    server.pod(
        NAME,
        "anchor",
        phase="Pending",
        containerStatuses=[{"name": "trainer", "state": {"waiting": waiting}}],
    )
    for number in range(200):
        try:
            server.patch_jobset(NAME, {"metadata": {"labels": {"tick": str(number)}}})
        except Missing:  # it was given up
            break
        threading.Event().wait(0.1)
    error = training.join()
    assert isinstance(error, UserError)
    assert "ImagePullBackOff: not found" in error.message
    assert server.cluster.get(names.JOBSET, NAME) is None


def test_logs_of_pods_and_warnings_outlive_the_pods(server: ApiServer, run: Store) -> None:
    training = Training(server, RunLog("launch", run))
    made(server)
    pod = server.pod(
        NAME, "anchor", phase="Running", containerStatuses=[{"name": "trainer", "state": {"running": {}}}]
    )
    server.log(pod, "2026-01-01T00:00:01.5Z step 1\n2026-01-01T00:00:02.123456789Z step 2 – ü\n")
    server.add("v1/events", {
        "metadata": {"name": "e1", "uid": "e1"}, "type": "Warning", "reason": "FailedScheduling", "count": 3,
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "involvedObject": {"name": f"{NAME}-spot-0-0"}, "message": "0/4 nodes are available"})  # fmt: skip
    server.patch_jobset(NAME, {"status": {"restarts": 1}})
    eventually(lambda: server.requests("get", f"/pods/{pod}/log"))
    run.put(RunLayout.TRAINING_DONE, DONE.to_json())
    server.end(NAME, "Completed")
    assert training.join() == DONE
    assert [event["text"] for event in events(run, "pods/")] == ["step 1", "step 2 – ü"]
    (warning,) = [event for event in events(run, "launch") if event["event"] == "warning"]
    assert warning["message"] == "0/4 nodes are available" and warning["at"] == "2026-01-01T00:00:00Z"
    again = Follower(server.cluster, PodLogMirror(server.cluster, run), RunLog("launch", run), 60)
    again._report_warnings(NAME)
    again.log.flush()
    assert [event["event"] for event in events(run, "launch")].count("warning") == 1


def test_own_pod_names_the_workflow_and_the_image(server: ApiServer) -> None:
    labels = {"workflows.argoproj.io/workflow": "pretrain-1"}
    spec = {"containers": [{"name": "wait", "image": "argo"}, {"name": "main", "image": "reg/eosin:1"}]}
    server.add("v1/pods", {"metadata": {"name": "me", "labels": labels}, "spec": spec})
    server.add(WORKFLOWS, {"metadata": {"name": "pretrain-1", "uid": "w-uid"}, "spec": {}})
    found = find_launcher(server.cluster, pod_name="me")
    assert found.image == "reg/eosin:1"
    assert found.owner == names.OwnerReference("argoproj.io/v1alpha1", "Workflow", "pretrain-1", "w-uid")
    assert found.was_cancelled(server.cluster) is False
    assert find_launcher(server.cluster, pod_name="nobody") == Launcher()


@pytest.mark.parametrize(
    "spec",
    [{"shutdown": "Terminate"}, {"shutdown": "Stop"}, {"activeDeadlineSeconds": 0}, {}],
    ids=["argo terminate", "argo stop", "kubeflow terminate", "evicted"],
)
def test_sigterm_deletes_when_cancelled_and_leaves_when_evicted(
    server: ApiServer, run: Store, monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any]
) -> None:
    server.add(WORKFLOWS, {"metadata": {"name": "w", "uid": "w-uid"}, "spec": spec})
    monkeypatch.setattr(launcher, "find_launcher", lambda cluster: Launcher(workflow="w"))

    def stop_once_running() -> None:
        eventually(lambda: server.requests("get", f"/jobsets/{NAME}"))
        eventually(lambda: server.requests("get", "/pods"))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_once_running, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError if spec else TransientError):
        launcher.train_on_cluster(RUN, log=RunLog("launch"), cluster=server.cluster)
    assert (server.cluster.get(names.JOBSET, NAME) is None) is bool(spec)
    assert signal.getsignal(signal.SIGTERM) == before


def test_cancel_and_live_state(server: ApiServer, run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_state, "open_store", lambda uri: run)
    assert live_state.live_state(RUN, cluster=server.cluster) is None
    nothing = finish.cancel_on_cluster(RUN, server.cluster)
    assert (nothing.jobset, nothing.workflow) == ("", "") and "nothing of the run" in str(nothing)
    live(server)
    server.pod(NAME, "anchor", phase="Running")
    server.pod(NAME, "spot", 0, phase="Running")
    server.pod(NAME, "spot", 1, phase="Pending")
    server.patch_jobset(NAME, {"status": {"restarts": 2}})
    state = live_state.live_state(RUN, cluster=server.cluster)
    assert state == live_state.LiveState(
        NAME, "Running", 2, {"anchor": {"Running": 1}, "spot": {"Pending": 1, "Running": 1}}
    )
    assert "running, 2 restarts · anchor 1 running · spot 1 pending, 1 running" in str(state)
    assert finish.cancel_on_cluster(RUN, server.cluster) == finish.Cancelled(NAME, "")
    assert server.cluster.get(names.JOBSET, NAME) is None


def test_an_image_of_a_step_that_cannot_be_pulled_is_told_after_a_minute(
    server: ApiServer, run: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_state, "open_store", lambda uri: run)
    run.put(RunLayout.KUBEFLOW_RUN, KubeflowRun(namespace=NAMESPACE, run_id="an-id").to_json())
    labels = {names.RUN_ID_LABEL: "an-id"}
    server.add(WORKFLOWS, {"metadata": {"name": "w", "uid": "w-uid", "labels": labels}, "spec": {}})
    waiting = {"reason": "ImagePullBackOff", "message": "not found"}
    for name, made in (("old", "2026-01-01T00:00:00Z"), ("new", datetime.now(UTC).isoformat())):
        server.add("v1/pods", {
            "metadata": {"name": name, "labels": {names.WORKFLOW_LABEL: "w"}, "creationTimestamp": made},
            "status": {"containerStatuses": [{"image": "reg/x:1", "state": {"waiting": waiting}}]},
        })  # fmt: skip
    state = live_state.live_state(RUN, cluster=server.cluster)
    said = "pod old: image reg/x:1 cannot be pulled: ImagePullBackOff: not found"
    assert str(state) == said


def test_cancelling_stops_the_workflow_that_would_submit_it_again(
    server: ApiServer, run: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(WORKFLOWS, {"metadata": {"name": "w", "uid": "w-uid"}, "spec": {"entrypoint": "x"}})
    live(server)
    owner = names.OwnerReference("argoproj.io/v1alpha1", "Workflow", "w", "w-uid").manifest()
    server.patch_jobset(NAME, {"metadata": {"ownerReferences": [owner]}})
    assert finish.cancel_on_cluster(RUN, server.cluster) == finish.Cancelled(NAME, "w")
    assert Launcher(workflow="w").was_cancelled(server.cluster) is True
