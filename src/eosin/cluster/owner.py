"""The Workflow that runs this launcher: owner of what it makes, and the one who says whether to stop."""

from __future__ import annotations

import os
from dataclasses import dataclass

from eosin.cluster.api import Cluster, Manifest, Missing, inside_a_pod
from eosin.cluster.names import OwnerReference
from eosin.errors import UserError

_WORKFLOW_LABEL = "workflows.argoproj.io/workflow"
_GROUP, _VERSION, _PLURAL = "argoproj.io", "v1alpha1", "workflows"


@dataclass(frozen=True)
class Launcher:
    """The pod this process runs in; nothing of it outside a cluster."""

    image: str = ""
    workflow: str = ""
    owner: OwnerReference | None = None

    def was_cancelled(self, cluster: Cluster) -> bool:
        """Whether the run was cancelled, rather than this pod evicted."""
        if not self.workflow:
            return False
        try:
            workflow = cluster.get_object(_GROUP, _VERSION, _PLURAL, self.workflow)
        except Missing:
            return True
        spec = workflow.get("spec", {})
        # Argo's own command sets `shutdown`; Kubeflow's Terminate moves the deadline to now.
        return spec.get("shutdown") in {"Stop", "Terminate"} or spec.get("activeDeadlineSeconds") == 0


def find_launcher(cluster: Cluster, *, pod_name: str = "") -> Launcher:
    """This pod's image and Workflow. A pod that may not read itself simply has neither."""
    if not pod_name:
        if not inside_a_pod():
            return Launcher()
        pod_name = os.environ.get("EOSIN_POD_NAME") or os.environ.get("HOSTNAME", "")
    try:
        pod = cluster.get_pod(pod_name)
    except (Missing, UserError):
        return Launcher()
    workflow = pod["metadata"].get("labels", {}).get(_WORKFLOW_LABEL, "")
    return Launcher(_image(pod), workflow, _reference(cluster, workflow))


def stop_owner(cluster: Cluster, owned: Manifest) -> str:
    """Stop the Workflow that owns `owned`, as Kubeflow's Terminate does; its name, empty where it has none.

    Raises `UserError` where this identity may not.
    """
    owners = owned["metadata"].get("ownerReferences") or []
    name = next((str(owner["name"]) for owner in owners if owner["kind"] == "Workflow"), "")
    if name:
        try:
            cluster.patch_object(_GROUP, _VERSION, _PLURAL, name, {"spec": {"activeDeadlineSeconds": 0}})
        except Missing:
            return ""
    return name


def _image(pod: Manifest) -> str:
    containers = pod["spec"]["containers"]
    main = next((container for container in containers if container["name"] == "main"), containers[0])
    return str(main["image"])


def _reference(cluster: Cluster, workflow: str) -> OwnerReference | None:
    if not workflow:
        return None
    try:
        found = cluster.get_object(_GROUP, _VERSION, _PLURAL, workflow)
    except (Missing, UserError):
        return None
    return OwnerReference(f"{_GROUP}/{_VERSION}", "Workflow", workflow, found["metadata"]["uid"])
