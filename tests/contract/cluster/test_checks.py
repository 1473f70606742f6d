"""`doctor --cluster` against a mock API server: each thing that lacks is named with its fix."""

from collections.abc import Iterator
from typing import Any

import pytest

from eosin.cluster.api import Cluster
from eosin.cluster.cluster_checks import LAUNCHER_PERMISSIONS, run_cluster_checks
from eosin.config import load_config
from eosin.config.cluster import ClusterConfig
from eosin.errors import Check
from tests.support.api_server import NAMESPACE, ApiServer, serve

APIS = {
    "jobset.x-k8s.io/v1alpha2": {"jobsets"},
    "argoproj.io/v1alpha1": {"workflows"},
    "kueue.x-k8s.io/v1beta2": {"localqueues", "workloads"},
}
kmock = pytest.importorskip("kmock", reason="pip install kmock")

REVIEWS = "post /apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """A cluster that has everything."""
    with serve() as running:
        mock = running.mock
        mock["get /version/"] << {"gitVersion": "v1.34.1"}
        for resource in ("v1/nodes", "v1/resourcequotas", "kueue.x-k8s.io/v1beta2/localqueues"):
            mock.resources[resource] = {}
        running.installed = {"jobset.x-k8s.io/v1alpha2", "argoproj.io/v1alpha1"}  # type: ignore[attr-defined]
        for api in APIS:
            mock[f"get /apis/{api}"] << discovery(running, api)
        argo_retries(running, "Always")
        for resource in ("v1/serviceaccounts", "v1/secrets"):
            mock.resources[resource] = {}
        running.add("v1/serviceaccounts", {"metadata": {"name": "eosin-train"}})
        yield running


def discovery(server: ApiServer, api: str) -> Any:
    def answer(request: Any) -> Any:
        if api not in server.installed:  # type: ignore[attr-defined]
            return kmock.Response(status=404, payload={"message": "the server could not find it"})
        return {"kind": "APIResourceList", "resources": [{"name": name} for name in sorted(APIS[api])]}

    return answer


def install(server: ApiServer, *apis: str) -> None:
    server.installed |= set(apis)  # type: ignore[attr-defined]


def argo_retries(server: ApiServer, policy: str) -> None:
    """The configuration of Argo's controller as Kubeflow Pipelines 2.17 installs it, with such a policy."""
    defaults = f"spec:\n  templateDefaults:\n    retryStrategy: {{limit: '2', retryPolicy: {policy}}}\n"
    server.mock.objects["v1/configmaps", NAMESPACE, "workflow-controller-configmap"] = {
        "metadata": {"name": "workflow-controller-configmap"},
        "data": {"workflowDefaults": defaults},
    }


def node(server: ApiServer, name: str, gpus: int, *, ready: bool = True, **labels: str) -> None:
    status = {
        "conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}],
        "allocatable": {"nvidia.com/gpu": str(gpus)} if gpus else {},
    }
    server.mock.objects["v1/nodes", None, name] = {
        "metadata": {"name": name, "labels": labels},
        "status": status,
    }


def allow(server: ApiServer, refused: tuple[str, str] | None = None) -> None:
    def review(request: Any) -> dict[str, Any]:
        asked = request.data["spec"]["resourceAttributes"]
        # The emulator stores what is posted; a review is an answer and never an object.
        server.mock.objects["authorization.k8s.io/v1/selfsubjectaccessreviews", None, None].delete()
        resource = "/".join(filter(None, (asked["resource"], asked["subresource"])))
        return {"status": {"allowed": (asked["verb"], resource) != refused}}

    server.mock[REVIEWS] << review


def checks(server: ApiServer, config: str = "") -> dict[str, Check]:
    section = load_config(f"cluster: {config}").cluster if config else ClusterConfig()
    return {check.name: check for check in run_cluster_checks(section, cluster=server.cluster)}


def test_cluster_that_has_everything(server: ApiServer) -> None:
    allow(server)
    node(server, "n1", 1)
    found = checks(server)
    assert {check.status for check in found.values()} == {"ok"}
    assert len([name for name in found if name.startswith("may ")]) == len(LAUNCHER_PERMISSIONS)
    assert found["kubernetes API"].detail == f"v1.34.1, namespace {NAMESPACE}"


def preset(server: ApiServer, section: str) -> dict[str, Check]:
    """What is found where the chart presets `section`."""
    data = {"cluster.yaml": section}
    server.add("v1/configmaps", {"metadata": {"name": "eosin-cluster"}, "data": data})
    return {check.name: check for check in run_cluster_checks(cluster=server.cluster)}


def test_the_pools_that_the_chart_presets_are_those_checked(server: ApiServer) -> None:
    allow(server)
    node(server, "n1", 8, pool="h100")
    found = preset(server, "{pools: [{name: big, gpus_per_node: 8, node_selector: {pool: h100}}]}")
    assert found["pool big"].status == found["ConfigMap eosin-cluster"].status == "ok"


def test_a_chart_that_is_not_installed_here_is_said(server: ApiServer) -> None:
    allow(server)
    (check,) = [
        each for each in run_cluster_checks(cluster=server.cluster) if each.name == "ConfigMap eosin-cluster"
    ]
    assert check.status == "warn" and "helm install" in check.fix


def test_a_preset_that_no_configuration_has_fails(server: ApiServer) -> None:
    allow(server)
    check = preset(server, "{quue: gpus}")["ConfigMap eosin-cluster"]
    assert check.status == "fail" and "quue" in check.detail and check.fix


def test_no_kubeflow_is_a_warning_since_training_needs_none(server: ApiServer) -> None:
    allow(server)
    server.installed.discard("argoproj.io/v1alpha1")  # type: ignore[attr-defined]
    check = checks(server)["API workflows"]
    assert check.status == "warn" and "Kubeflow Pipelines" in check.fix


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("{service_account: nobody}", "serviceaccount nobody"),
        ("{s3: {secret: keys}}", "secret keys"),
        ("{image_pull_secrets: [registry]}", "secret registry"),
        ("{s3: {ca_config_map: ca}}", "configmap ca"),
    ],
)
def test_what_pods_refer_to_must_be_there(server: ApiServer, config: str, name: str) -> None:
    allow(server)
    kind, _, subject = name.partition(" ")
    check = checks(server, config)[name]
    assert check.status == "fail" and check.fix
    server.add(f"v1/{kind}s", {"metadata": {"name": subject}})
    assert checks(server, config)[name].status == "ok"


def test_who_may_not_read_secrets_is_told_nothing_of_them(server: ApiServer) -> None:
    allow(server, ("get", "secrets"))
    assert "secret keys" not in checks(server, "{s3: {secret: keys}}")


def test_missing_jobset_api_names_the_command(server: ApiServer) -> None:
    allow(server)
    server.installed.discard("jobset.x-k8s.io/v1alpha2")  # type: ignore[attr-defined]
    check = checks(server)["API jobsets"]
    assert check.status == "fail"
    assert "kubectl apply" in check.fix


def test_as_kubeflow_is_installed_a_failed_step_ends_the_run_and_doctor_says_the_cure(
    server: ApiServer,
) -> None:
    allow(server)
    assert checks(server)["steps' retries"].status == "ok"
    argo_retries(server, "OnError")
    check = checks(server)["steps' retries"]
    assert check.status == "warn" and "eosin resume" in check.detail
    assert "retryPolicy: Always" in check.fix and check.fix.startswith("kubectl -n kubeflow")


@pytest.mark.parametrize("refused", [("create", "jobsets"), ("get", "pods/log"), ("get", "workflows")])
def test_each_missing_verb_is_named(server: ApiServer, refused: tuple[str, str]) -> None:
    allow(server, refused)
    failed = [check for check in checks(server).values() if check.status == "fail"]
    assert [check.detail for check in failed] == [f"may not {refused[0]} {refused[1]}"]


def test_queue_that_is_not_there(server: ApiServer) -> None:
    allow(server)
    install(server, "kueue.x-k8s.io/v1beta2")
    assert checks(server, "{queue: gpus}")["queue"].status == "fail"
    server.add(
        "kueue.x-k8s.io/v1beta2/localqueues",
        {"metadata": {"name": "gpus"}, "spec": {"clusterQueue": "all"}, "status": {"pendingWorkloads": 2}},
    )
    assert checks(server, "{queue: gpus}")["queue"].detail == "gpus → all, 2 waiting"


def test_queue_that_admits_nothing(server: ApiServer) -> None:
    allow(server)
    install(server, "kueue.x-k8s.io/v1beta2")
    stopped = {"type": "Active", "status": "False", "message": "ClusterQueue all is not there"}
    queue = {
        "metadata": {"name": "gpus"},
        "spec": {"clusterQueue": "all"},
        "status": {"conditions": [stopped]},
    }
    server.add("kueue.x-k8s.io/v1beta2/localqueues", queue)
    check = checks(server, "{queue: gpus}")["queue"]
    assert check.status == "fail" and "is not there" in check.detail and check.fix


def test_kueue_is_needed_only_where_a_queue_is_named(server: ApiServer) -> None:
    allow(server)
    assert "API localqueues" not in checks(server)
    assert checks(server, "{queue: gpus}")["API localqueues"].status == "fail"


def test_pools_are_matched_by_label_readiness_and_gpus(server: ApiServer) -> None:
    allow(server)
    node(server, "a", 8, pool="h100")
    node(server, "b", 8, pool="h100", ready=False)
    node(server, "c", 1, pool="t4")
    pools = "[{name: anchor, max_nodes: 2, gpus_per_node: 8, node_selector: {pool: h100}}"
    found = checks(
        server, f"{{pools: {pools}, {{name: big, gpus_per_node: 8, node_selector: {{pool: t4}}}}]}}"
    )
    assert found["pool anchor"].status == "ok"
    assert found["pool anchor"].detail.startswith("1 of 1–2")
    assert found["pool big"].status == "warn"
    assert "1 × 1 nvidia.com/gpu" in found["pool big"].fix


def test_quota_that_would_keep_the_anchor_pending(server: ApiServer) -> None:
    allow(server)
    status = {"hard": {"requests.nvidia.com/gpu": "4"}, "used": {"requests.nvidia.com/gpu": "3"}}
    server.add("v1/resourcequotas", {"metadata": {"name": "gpus"}, "status": status})
    assert checks(server)["quota"].status == "ok"
    assert checks(server, "{pools: [{gpus_per_node: 2}]}")["quota"].status == "fail"


def test_what_may_not_be_read_is_a_warning(server: ApiServer) -> None:
    allow(server)
    server.mock["get /api/v1/nodes"] << 403
    assert checks(server)["nodes"].status == "warn"


def test_a_queue_that_may_not_be_read_was_not_checked_and_fails(server: ApiServer) -> None:
    allow(server)
    install(server, "kueue.x-k8s.io/v1beta2")
    path = f"get /apis/kueue.x-k8s.io/v1beta2/namespaces/{NAMESPACE}/localqueues/gpus"
    server.mock[path] << 403
    check = checks(server, "{queue: gpus}")["queue"]
    assert check.status == "fail" and "not checked" in check.detail


def test_server_that_is_away_is_the_only_check() -> None:
    from kubernetes import client

    settings = client.Configuration()
    settings.host, settings.retries = "http://127.0.0.1:9", False
    away = Cluster(client.ApiClient(settings), NAMESPACE, sleep=lambda _: None)
    (check,) = run_cluster_checks(ClusterConfig(), cluster=away)
    assert check.status == "fail"
    assert "cannot be reached" in check.detail
