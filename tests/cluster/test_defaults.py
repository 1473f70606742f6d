"""What a cluster presets, as a person's machine sees it: found, absent, forbidden, wrong, out of reach."""

from pathlib import Path

import pytest
import yaml

from eosin.cluster.api import Cluster
from eosin.cluster.defaults import CONFIG_MAP, KEY, defaults_in_reach
from eosin.config.cluster import ClusterConfig
from eosin.errors import UserError
from tests.support.real_cluster import acting_as, apply, namespace


def preset(cluster: Cluster, text: str) -> None:
    metadata = {"name": CONFIG_MAP, "namespace": cluster.namespace}
    apply([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {KEY: text}}])


def kubeconfig(folder: Path, cluster: Cluster, *, account: str = "", server: str = "") -> str:
    """A file that leads to the cluster, in its namespace, as a service account or to another server."""
    settings = (acting_as(cluster, account) if account else cluster).core.api_client.configuration
    user = {"token": settings.api_key["authorization"].removeprefix("Bearer ")} if account else {
        "client-certificate": settings.cert_file, "client-key": settings.key_file}  # fmt: skip
    where = {"server": server or settings.host, "certificate-authority": settings.ssl_ca_cert}
    context = {"cluster": "c", "user": "u", "namespace": cluster.namespace}
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "c", "cluster": where}], "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": context}],
    }))  # fmt: skip
    return str(path)


def look_through(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process begun with KUBECONFIG=path: the client reads the variable when it is imported."""
    monkeypatch.setenv("KUBECONFIG", path)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", path)


def test_what_the_chart_presets_is_found_by_namespace_and_by_the_current_context(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, unseen = defaults_in_reach(cluster.namespace)
    assert unseen == "" and found.watcher_account == "eosin-watcher"
    preset(cluster, "queue: gpus\npools: [{name: big, gpus_per_node: 8, max_nodes: 4}]")
    found, unseen = defaults_in_reach(cluster.namespace)
    assert (unseen, found.queue, found.pools[0].gpus_per_node) == ("", "gpus", 8)
    look_through(kubeconfig(tmp_path, cluster), monkeypatch)
    assert defaults_in_reach() == (found, "")


def test_a_namespace_without_presets_is_told_and_kubeflows_own_is_asked_next(
    real: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with namespace(real) as bare:
        found, unseen = defaults_in_reach(bare.namespace)
        assert found == ClusterConfig() and f"no ConfigMap {CONFIG_MAP} was found" in unseen
        look_through(kubeconfig(tmp_path, bare), monkeypatch)
        with namespace(real) as kubeflow:
            preset(kubeflow, "queue: of-kubeflow")
            monkeypatch.setattr("eosin.cluster.defaults._KUBEFLOW", kubeflow.namespace)
            found, unseen = defaults_in_reach()
            assert (found.queue, unseen) == ("of-kubeflow", "")


def test_who_may_not_look_is_told_so_and_goes_on(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_through(kubeconfig(tmp_path, cluster, account="default"), monkeypatch)
    found, unseen = defaults_in_reach(cluster.namespace)
    assert found == ClusterConfig() and unseen.startswith("note: ") and "cannot get resource" in unseen


def test_presets_that_no_configuration_has_are_refused_by_name(cluster: Cluster) -> None:
    preset(cluster, "quue: gpus")
    with pytest.raises(UserError, match=f"{cluster.namespace}/{CONFIG_MAP}") as caught:
        defaults_in_reach(cluster.namespace)
    assert "cluster.queue" in caught.value.message


def test_a_cluster_out_of_reach_is_told_at_once(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_through(kubeconfig(tmp_path, cluster, server="https://127.0.0.1:9"), monkeypatch)
    found, unseen = defaults_in_reach(cluster.namespace)
    assert found == ClusterConfig() and "cannot be reached: connection refused" in unseen
