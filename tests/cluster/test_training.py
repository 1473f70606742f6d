"""Training's objects on a real control plane: owners, garbage collection, Roles, admission, ends."""

import time
from typing import Any

import pytest

from eosin.cluster import names
from eosin.cluster.api import Cluster
from eosin.cluster.cluster_checks import run_cluster_checks
from eosin.cluster.finish import cancel_on_cluster, finish_run
from eosin.cluster.follow import Follower
from eosin.cluster.jobset import render_jobset
from eosin.cluster.names import JOBSET, WORKFLOW, jobset_name
from eosin.cluster.pod_logs import PodLogMirror
from eosin.cluster.training import Submission, submit_training
from eosin.cluster.watcher import Watcher
from eosin.cluster.workflow import Launcher, stop_workflow
from eosin.config import RunConfig, load_config
from eosin.errors import UserError
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.records import KubeflowRun
from eosin.storage import open_store
from tests.support.real_cluster import (
    IMAGE,
    acting_as,
    bucket_log,
    eventually,
    make_workflow,
    namespace,
    serve_bucket,
)

RUN = "s3://bucket/runs/on-a-real-cluster"
NAME = jobset_name(RUN)
WORKLOADS = names.Resource("kueue.x-k8s.io", "v1beta2", "workloads", "Workload")
POOLS = "pools: [{name: anchor, gpus_per_node: 0, cpu: 1m, memory: 16Mi}]"


def config(more: str = "") -> RunConfig:
    return load_config(f"cluster: {{image: '{IMAGE}', shm_size: 8Mi, scratch: {{size: 8Mi}}, {POOLS}{more}}}")


def submit(cluster: Cluster, owner: names.OwnerReference | None = None, more: str = "") -> dict[str, Any]:
    log = RunLog("launch")
    return submit_training(cluster, Submission(config(more), RUN, IMAGE, owner, log, lambda: False))


def launching(cluster: Cluster) -> Cluster:
    """With the permissions of the account that runs pipelines."""
    return acting_as(cluster, "pipeline-runner")


def gone(cluster: Cluster, resource: names.Resource) -> bool:
    return cluster.get(resource, NAME) is None


def test_an_adopted_training_outlives_the_workflow_that_made_it_and_no_other(cluster: Cluster) -> None:
    launcher = launching(cluster)
    first, second = make_workflow(cluster, "first"), make_workflow(cluster, "second")
    made = submit(launcher, first)
    adopted = submit(launcher, second)
    assert adopted["metadata"]["uid"] == made["metadata"]["uid"]
    owners = [owner["name"] for owner in adopted["metadata"]["ownerReferences"]]
    assert owners == ["first", "second"]
    cluster.delete(WORKFLOW, {"metadata": {"name": "first", "uid": first.uid}})
    eventually("the first Workflow is gone", lambda: cluster.get(WORKFLOW, "first") is None)
    time.sleep(10)  # the collector would have had time
    assert not gone(cluster, JOBSET)
    cluster.delete(WORKFLOW, {"metadata": {"name": "second", "uid": second.uid}})
    eventually("the training is collected", lambda: gone(cluster, JOBSET))


def test_cancel_ends_the_workflow_and_the_training(cluster: Cluster) -> None:
    launcher = launching(cluster)
    owner = make_workflow(cluster, "run", "run-id")
    submit(launcher, owner)
    done = cancel_on_cluster(RUN, cluster, KubeflowRun(namespace=cluster.namespace, run_id="run-id"))
    assert (done.jobset, done.workflow) == (NAME, "run")
    assert gone(cluster, JOBSET) and cluster.list_pods(NAME) == []
    stopped = cluster.get(WORKFLOW, "run")
    assert stopped is not None and stopped["spec"]["activeDeadlineSeconds"] == 0


def test_cancel_before_training_finds_the_workflow_by_its_run(cluster: Cluster) -> None:
    make_workflow(cluster, "planning", "an-id")
    done = cancel_on_cluster(RUN, cluster, KubeflowRun(namespace=cluster.namespace, run_id="an-id"))
    assert (done.jobset, done.workflow) == ("", "planning")


def test_a_deleted_run_takes_its_training_along(cluster: Cluster) -> None:
    owner = make_workflow(cluster, "run")
    submit(launching(cluster), owner)
    cluster.delete(WORKFLOW, {"metadata": {"name": "run", "uid": owner.uid}})
    eventually("the JobSet is collected", lambda: gone(cluster, JOBSET))


@pytest.mark.parametrize("terminated", [True, False], ids=["terminated", "failed"])
def test_the_last_task_stops_what_a_terminated_run_left_and_nothing_else(
    cluster: Cluster, terminated: bool
) -> None:
    launcher = launching(cluster)
    owner = make_workflow(cluster, "run")
    submit(launcher, owner)
    if terminated:
        stop_workflow(cluster, "run")
    left = finish_run(launcher, Launcher(workflow="run", owner=owner), log=RunLog("finish"))
    assert (left.stopped, left.training) == (((NAME,), ()) if terminated else ((), (NAME,)))
    assert gone(cluster, JOBSET) is terminated


def watcher_runs(cluster: Cluster) -> bool:
    pods = cluster.list_pods(NAME)
    statuses = [status for pod in pods for status in pod.get("status", {}).get("containerStatuses") or []]
    return any(s["name"] == names.WATCHER_CONTAINER and "running" in s["state"] for s in statuses)


def test_the_watchers_pod_ends_a_terminated_training_within_a_minute(cluster: Cluster) -> None:
    """With its own account in the rendezvous pod, as it runs on a user's cluster."""
    owner = make_workflow(cluster, "run")
    submit(launching(cluster), owner)
    eventually("the watcher runs", lambda: watcher_runs(cluster))
    began_s = time.monotonic()
    stop_workflow(cluster, "run")
    eventually("the training is gone", lambda: gone(cluster, JOBSET))
    assert time.monotonic() - began_s < 60


def test_what_the_watchers_pod_ended_and_why_is_in_the_bucket(cluster: Cluster) -> None:
    """By the keys of the Secret that training has, before Kubernetes has ended its pod."""
    serve_bucket(cluster)
    submit(launching(cluster), make_workflow(cluster, "run"), ", s3: {secret: bucket}")
    eventually("the watcher runs", lambda: watcher_runs(cluster))
    stop_workflow(cluster, "run")
    key = f"runs/on-a-real-cluster/{RunLayout.failure('train')}"
    noted = eventually("it is noted", lambda: [line[key] for line in bucket_log(cluster) if key in line])
    assert noted[0]["message"] == "the watcher has ended the training: its run was terminated"
    assert noted[0]["pod"].startswith(f"{NAME}-rdzv") and "eosin resume" in noted[0]["hint"]


def test_the_watcher_ends_what_nobody_follows_and_no_sooner(cluster: Cluster) -> None:
    submit(launching(cluster), make_workflow(cluster, "run"))
    now_s = [0.0]
    watcher = Watcher(acting_as(cluster, "eosin-watcher"), NAME, 3600, RunLog("watcher"), lambda: now_s[0])
    now_s[0] = 10_000
    assert watcher.look() and not gone(cluster, JOBSET), "no launcher has ever said that it follows"
    for stamp in ("a", "b"):
        cluster.patch(JOBSET, NAME, {"metadata": {"annotations": {names.FOLLOWED_ANNOTATION: stamp}}})
        watcher.look()
        now_s[0] += 3500
    watcher.look()
    assert not gone(cluster, JOBSET)
    now_s[0] += 200
    watcher.look()
    eventually("it is ended", lambda: gone(cluster, JOBSET))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("queue: nowhere", "nowhere"),
        ("queue: q, priority_class: missing", "no Workload.*PriorityClass missing"),
    ],
    ids=["queue", "priority-class"],
)
def test_a_queue_or_a_class_that_is_not_there_is_said_and_given_up_on(
    cluster: Cluster, tmp_path: Any, section: str, said: str
) -> None:
    launcher = launching(cluster)
    if "workloads" not in launcher.served(
        names.Resource("kueue.x-k8s.io", "v1beta2", "workloads", "Workload")
    ):
        pytest.skip("this cluster has no Kueue")
    submit(launcher, more=f", {section}")
    store = open_store(f"file://{tmp_path}")
    follower = Follower(launcher, PodLogMirror(launcher, store), RunLog("launch", store), 3)
    with pytest.raises(UserError, match=said):
        follower.follow(NAME)
    assert gone(cluster, JOBSET)


def test_an_account_without_the_role_is_told_so(cluster: Cluster) -> None:
    with pytest.raises(UserError, match="forbidden"):
        submit(acting_as(cluster, "eosin-train"))


def test_checks_of_a_launcher_fail_for_a_queue_that_is_not_there(cluster: Cluster) -> None:
    section = config(", queue: nowhere").cluster
    found = run_cluster_checks(section, cluster=launching(cluster))
    checks = {check.name: check for check in found}
    assert checks["API jobsets"].status == "ok"
    assert checks["queue"].status == "fail"
    lacking = [check for check in checks.values() if check.name.startswith("may ") and check.status != "ok"]
    assert lacking == []


def test_every_pod_of_a_training_passes_the_restricted_standard(real: Cluster) -> None:
    jobset = render_jobset(config(", queue: q"), RUN, image="reg/eosin:1")
    with namespace(real, **{"pod-security.kubernetes.io/enforce": "restricted"}) as restricted:
        for account in ("eosin-train", "eosin-watcher"):
            body = {"metadata": {"name": account}}
            restricted.read(
                "an account", restricted.core.create_namespaced_service_account, restricted.namespace, body
            )
        for job in jobset["spec"]["replicatedJobs"]:
            template = job["template"]["spec"]["template"]
            pod = {"metadata": {"name": job["name"], **template["metadata"]}, "spec": template["spec"]}
            restricted.read(
                "a pod", restricted.core.create_namespaced_pod, restricted.namespace, pod, dry_run="All"
            )
