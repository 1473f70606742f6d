"""The chart's life on a real cluster, and its Roles: all that they grant is used, and nothing is lacking."""

from pathlib import Path
from typing import Any

import pytest

from eosin import preflight, steps
from eosin.cluster import api, names, training
from eosin.cluster.api import Cluster
from eosin.cluster.cluster_checks import LAUNCHER_PERMISSIONS, WATCHER_PERMISSIONS, run_cluster_checks
from eosin.cluster.finish import cancel_on_cluster, finish_run
from eosin.cluster.jobset import render_jobset
from eosin.cluster.launcher import train_on_cluster
from eosin.cluster.watcher import Watcher
from eosin.cluster.workflow import find_launcher, stop_workflow
from eosin.config import RunConfig, load_config
from eosin.errors import PermanentError, UserError
from eosin.observability import RunLog
from eosin.recipes import load_recipe
from tests.support.launched_run import launched_run
from tests.support.real_cluster import (
    CHART,
    IMAGE,
    ROOT,
    WAIT,
    Recorder,
    acting_as,
    apply,
    eventually,
    helm,
    install_accounts,
    make_workflow,
    namespace,
    only_agents,
    waiting,
)

RUN = "s3://bucket/runs/on-a-real-cluster"
NAME = names.jobset_name(RUN)
TWO_POOLS = "pools: [{name: anchor, gpus_per_node: 0}, {name: spot, spot: true, gpus_per_node: 0}]"
DIES = "anchor_backoff_limit: 0, max_restarts: 0, pools: [{name: anchor, gpus_per_node: 0}]"


def config(more: str) -> RunConfig:
    small = f"image: '{IMAGE}', shm_size: 8Mi, scratch: {{size: 8Mi}}"
    return load_config(f"cluster: {{{small}, {more}}}\ntrain: {{num_microbatches: 64, batch_size: 64}}")


def granted(permissions: Any) -> set[tuple[str, str, str]]:
    return {(group, resource, verb) for group, resource, verbs, _ in permissions for verb in verbs}


def test_the_roles_grant_what_launcher_and_watcher_do_and_nothing_else(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainings with the chart's accounts: one that is never admitted, one that fails, two that are ended."""
    done, watched = Recorder(), Recorder()
    runner = acting_as(cluster, "pipeline-runner", done)
    never = config(f"queue: nowhere, spot_as: elastic-job, stuck_timeout_s: 1, {TWO_POOLS}")
    launched_run(tmp_path / "never", never, monkeypatch)
    with pytest.raises(UserError, match="nowhere"):
        train_on_cluster(RUN, log=RunLog("launch"), cluster=runner)
    run_cluster_checks(never.cluster, cluster=runner)

    rendered = render_jobset
    command = only_agents("import sys; print('no more'); sys.exit(43)")
    monkeypatch.setattr(training, "render_jobset", lambda *a, **k: waiting(rendered(*a, **k), command))
    launched_run(tmp_path / "dies", config(DIES), monkeypatch)
    with pytest.raises(PermanentError, match="exited with 43: no more"):
        train_on_cluster(RUN, log=RunLog("launch"), cluster=runner)

    monkeypatch.setattr(training, "render_jobset", lambda *a, **k: waiting(rendered(*a, **k)))
    owner = make_workflow(cluster, "run")
    container = {"name": "main", "image": IMAGE, "command": ["python", "-c", WAIT]}
    labels = {names.WORKFLOW_LABEL: "run"}
    apply([{"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [container]}, "metadata": {
        "name": "launcher", "namespace": cluster.namespace, "labels": labels}}])  # fmt: skip
    launcher = find_launcher(runner, pod_name="launcher")
    assert launcher.owner == owner
    stop_workflow(cluster, "run")
    asked = training.Submission(config(DIES), RUN, IMAGE, owner, RunLog("launch"), lambda: False)
    training.submit_training(runner, asked)
    assert finish_run(runner, launcher, log=RunLog("finish")).stopped == (NAME,)
    training.submit_training(runner, asked)
    Watcher(acting_as(cluster, "eosin-watcher", watched), NAME, 3600, RunLog("watcher")).look()
    eventually("the watcher ended it", lambda: cluster.get(names.JOBSET, NAME) is None)

    assert done.allowed == granted(LAUNCHER_PERMISSIONS) and watched.allowed == granted(WATCHER_PERMISSIONS)
    # An administrator's to read; doctor says that it was not checked.
    assert done.refused <= {("", "resourcequotas", "list"), ("", "configmaps", "get")} and not watched.refused


def test_plan_refuses_what_the_charts_presets_cannot_train(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the account that runs pipelines, before anything is indexed; what fits is compared by price."""
    install_accounts(cluster, "--values", str(ROOT / "manifests/overlays/kind/values.yaml"))
    monkeypatch.setattr(api, "connect", lambda namespace: acting_as(cluster, "pipeline-runner"))
    monkeypatch.setattr(steps, "in_pod", lambda: True)
    monkeypatch.setattr(preflight, "measured_speeds", lambda uri, recipe: {})
    text, source = load_recipe("demo")
    demo = load_config(text, source=source)
    with pytest.raises(UserError, match=r"\d+ workers share only 2 microbatches"):
        steps._check_training(RUN, [demo], "jobset")
    fits = demo.model_copy(update={"train": demo.train.model_copy(update={"num_microbatches": 16})})
    steps._check_training(RUN, [fits], "jobset")
    assert "images an hour: not measured in a run of demo" in capsys.readouterr().err
    cluster.read("x", cluster.core.delete_namespaced_config_map, "eosin-cluster", cluster.namespace)
    steps._check_training(RUN, [demo], "jobset")
    with pytest.raises(UserError, match="forbidden"):
        monkeypatch.setattr(api, "connect", lambda namespace: acting_as(cluster, "eosin-train"))
        steps._check_training(RUN, [demo], "jobset")


def test_the_charts_life(real: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed, tested, upgraded, rolled back; uninstalled once nothing trains, and nothing is left."""
    with namespace(real) as cluster:
        values = ["--set", f"images.index={IMAGE},images.train={IMAGE},images.evaluate={IMAGE}",
                  "--set", "priorityClasses.create=false",
                  "--set", f"kubeflow.endpoint=http://stand-in.{cluster.namespace}:8888"]  # fmt: skip
        apply([*_kubeflow(cluster.namespace)])
        done = helm(cluster, "install", "eosin", str(CHART), *values)
        assert done.returncode == 0, done.stderr
        apply([{"apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": "pipeline-runner", "namespace": cluster.namespace}}])  # fmt: skip
        eventually("the stand-in answers", lambda: cluster.get_pod("stand-in")["status"].get("podIP"))
        done = helm(cluster, "test", "eosin", "--logs")
        assert done.returncode == 0, done.stdout + done.stderr
        missing = helm(cluster, "upgrade", "eosin", str(CHART), *values, "--set", "cluster.queue=nowhere")
        assert missing.returncode == 0, missing.stderr
        done = helm(cluster, "test", "eosin", "--logs")
        assert done.returncode != 0 and "LocalQueue nowhere is not in" in done.stdout + done.stderr
        assert helm(cluster, "rollback", "eosin", "1").returncode == 0

        manifest = waiting(render_jobset(config(DIES), RUN, image=IMAGE, namespace=cluster.namespace))
        cluster.create(names.JOBSET, manifest)
        before = eventually("it trains", lambda: running(cluster))
        assert (
            helm(cluster, "upgrade", "eosin", str(CHART), *values, "--set", "cluster.ttl_s=60").returncode
            == 0
        )
        done = helm(cluster, "test", "eosin")
        assert done.returncode == 0, done.stdout + done.stderr
        refused = helm(cluster, "uninstall", "eosin")
        assert refused.returncode != 0 and f"{RUN} trains" in refused.stdout + refused.stderr
        assert helm(cluster, "rollback", "eosin", "1").returncode == 0, "as the guard says"
        assert helm(cluster, "upgrade", "eosin", str(CHART), *values).returncode == 0
        assert running(cluster) == before, "through all of it"
        assert acting_as(cluster, "pipeline-runner").can_i("create", names.JOBSET.group, "jobsets")
        cancel_on_cluster(RUN, cluster)
        done = helm(cluster, "uninstall", "eosin")
        assert done.returncode == 0, done.stderr
        assert not acting_as(cluster, "pipeline-runner").can_i("create", names.JOBSET.group, "jobsets")


def running(cluster: Cluster) -> set[str]:
    """UIDs of the pods of the training, once they run."""
    pods = cluster.list_pods(NAME)
    full = len(pods) == 2 and all(pod["status"].get("phase") == "Running" for pod in pods)
    return {pod["metadata"]["uid"] for pod in pods} if full else set()


def _kubeflow(where: str) -> list[dict[str, Any]]:
    """What answers as the health check of Kubeflow's API does."""
    serve = (
        "import http.server as h\n"
        "class A(h.BaseHTTPRequestHandler):\n"
        "  def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(b'{}')\n"
        "h.ThreadingHTTPServer(('', 8888), A).serve_forever()"
    )
    container = {"name": "main", "image": IMAGE, "command": ["python", "-c", serve]}
    about = {"name": "stand-in", "namespace": where, "labels": {"app": "stand-in"}}
    service = {"selector": {"app": "stand-in"}, "ports": [{"port": 8888}]}
    return [
        {"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": {"containers": [container]}},
        {"apiVersion": "v1", "kind": "Service", "metadata": about, "spec": service},
    ]
