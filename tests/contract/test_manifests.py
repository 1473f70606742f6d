"""Overlays: each builds, is valid, fits its own chart values, and admits the JobSet it is made for."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from eosin.cluster.defaults import KEY, with_defaults
from eosin.cluster.jobset import render_jobset
from eosin.config import RunConfig, load_config
from eosin.config.cluster import ClusterConfig
from tests.support.kubernetes import built_in_errors, crd_errors, load_all
from tests.support.tools import run

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = sorted(path.parent.name for path in (ROOT / "manifests" / "overlays").glob("*/kustomization.yaml"))
_CRDS = {
    kind: f"kueue.x-k8s.io_{plural}.yaml"
    for kind, plural in (
        ("ClusterQueue", "clusterqueues"),
        ("LocalQueue", "localqueues"),
        ("ResourceFlavor", "resourceflavors"),
        ("WorkloadPriorityClass", "workloadpriorityclasses"),
    )
}
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "m": Decimal("0.001"), "": 1}


def build(overlay: str) -> list[dict[str, Any]]:
    done = run("kubectl", "kustomize", str(ROOT / "manifests" / "overlays" / overlay))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return load_all(done.stdout)


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [item for item in objects if item["kind"] == kind]


def rendered(overlay: str) -> list[dict[str, Any]]:
    """What the chart makes of the overlay's values."""
    values = str(ROOT / "manifests" / "overlays" / overlay / "values.yaml")
    done = run("helm", "template", "eosin", str(ROOT / "helm/eosin"), "--namespace", "eosin", "-f", values)
    assert done.returncode == 0, done.stderr
    return load_all(done.stdout)


def site(overlay: str) -> ClusterConfig:
    """The presets among it."""
    (config_map,) = [item for item in of_kind(rendered(overlay), "ConfigMap") if KEY in item["data"]]
    return load_config(yaml.safe_dump({"cluster": yaml.safe_load(config_map["data"][KEY])})).cluster


def jobset(overlay: str) -> dict[str, Any]:
    config = RunConfig(cluster=with_defaults(ClusterConfig(), site(overlay)))
    train = config.train.model_copy(update={"num_microbatches": 1024, "batch_size": 1024})
    config = config.model_copy(update={"train": train})
    return render_jobset(config, "s3://b/runs/x", image="reg/train:1")


def pods(manifest: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    jobs = [job["template"]["spec"] for job in manifest["spec"]["replicatedJobs"]]
    return [(job["parallelism"], job["template"]["spec"]) for job in jobs]


def quantity(text: str | int) -> Decimal:
    number = str(text).rstrip("KMGTim")
    return Decimal(number) * _UNITS[str(text)[len(number) :]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_builds_into_valid_objects(overlay: str) -> None:
    for manifest in build(overlay):
        if manifest["kind"] in _CRDS:
            assert crd_errors(manifest, _CRDS[manifest["kind"]]) == []
        else:
            assert built_in_errors(manifest) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_queue_covers_every_flavor_and_resource_in_the_same_order(overlay: str) -> None:
    objects = build(overlay)
    flavors = {item["metadata"]["name"] for item in of_kind(objects, "ResourceFlavor")}
    (queue,) = of_kind(objects, "ClusterQueue")
    (group,) = queue["spec"]["resourceGroups"]
    assert {flavor["name"] for flavor in group["flavors"]} == flavors
    for flavor in group["flavors"]:
        assert [entry["name"] for entry in flavor["resources"]] == group["coveredResources"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_pod_fits_one_flavor_whose_taints_it_tolerates(overlay: str) -> None:
    flavors = [item["spec"] for item in of_kind(build(overlay), "ResourceFlavor")]
    for _, pod in pods(jobset(overlay)):
        keys = {key for flavor in flavors for key in flavor["nodeLabels"]}
        asked = {key: value for key, value in pod["nodeSelector"].items() if key in keys}
        if not asked:  # a rendezvous pod that goes anywhere
            continue
        (fit,) = [flavor for flavor in flavors if asked.items() <= flavor["nodeLabels"].items()]
        tolerated = {entry["key"] for entry in pod["tolerations"]}
        assert {taint["key"] for taint in fit.get("nodeTaints", [])} <= tolerated


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_quota_admits_the_whole_world_that_the_values_describe(overlay: str) -> None:
    (queue,) = of_kind(build(overlay), "ClusterQueue")
    (group,) = queue["spec"]["resourceGroups"]
    for resource in group["coveredResources"]:
        quota = sum(
            quantity(entry["nominalQuota"])
            for flavor in group["flavors"]
            for entry in flavor["resources"]
            if entry["name"] == resource
        )
        needed = sum(
            number * quantity(container["resources"]["requests"].get(resource, 0))
            for number, pod in pods(jobset(overlay))
            for container in pod["containers"]
        )
        assert needed <= quota, resource


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_queue_that_the_values_name_is_made(overlay: str) -> None:
    """By the chart and by nothing else: two owners of one LocalQueue fail the installation."""
    objects = build(overlay)
    config = site(overlay)
    (queue,) = of_kind(rendered(overlay), "LocalQueue")
    assert config.queue == queue["metadata"]["name"] and of_kind(objects, "LocalQueue") == []
    assert queue["spec"]["clusterQueue"] in {
        each["metadata"]["name"] for each in of_kind(objects, "ClusterQueue")
    }
    classes = {item["metadata"]["name"] for item in of_kind(objects, "WorkloadPriorityClass")}
    assert config.queue_priority_class in {"", *classes}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_anchor_is_never_spot(overlay: str) -> None:
    first, *others = site(overlay).pools
    assert not first.spot
    assert all(pool.min_nodes == 0 for pool in others)


def test_prerequisites_are_pinned() -> None:
    text = (ROOT / "manifests/prerequisites/kustomization.yaml").read_text()
    resources = yaml.safe_load(text)["resources"]
    assert resources
    assert all("/v" in url and "latest" not in url and "main" not in url for url in resources)
    kueue = yaml.safe_load((ROOT / "manifests/prerequisites/kueue-values.yaml").read_text())
    manager = yaml.safe_load(kueue["managerConfig"]["controllerManagerConfigYaml"])
    assert manager["waitForPodsReady"]["recoveryTimeout"] == "0s"
    assert "jobset.x-k8s.io/jobset" in manager["integrations"]["frameworks"]
