"""Argo Workflow of a Kubeflow run: owner of what the launcher makes, and where a person ends the run."""

import os
from dataclasses import dataclass

from eosin.cluster.api import Cluster, Manifest, Missing, inside_a_pod
from eosin.cluster.names import RUN_ID_LABEL, WORKFLOW, WORKFLOW_LABEL, OwnerReference, owners
from eosin.records import KubeflowRun


@dataclass(frozen=True)
class Launcher:
    """The pod this process runs in; nothing of it outside a cluster."""

    image: str = ""
    workflow: str = ""
    owner: OwnerReference | None = None
    kubeflow_run: KubeflowRun | None = None

    def was_cancelled(self, cluster: Cluster) -> bool:
        """Whether the run was cancelled, rather than this pod evicted."""
        return bool(self.workflow) and is_stopped(cluster.get(WORKFLOW, self.workflow))


def is_stopped(workflow: Manifest | None) -> bool:
    """Whether a person has ended the Workflow: deleted (None), or told to stop."""
    if workflow is None:
        return True
    spec = workflow.get("spec", {})
    # Argo's own command sets `shutdown`; Kubeflow's Terminate moves the deadline to now.
    return spec.get("shutdown") in {"Stop", "Terminate"} or spec.get("activeDeadlineSeconds") == 0


def has_ended(workflow: Manifest) -> bool:
    """Whether Argo has done with the Workflow."""
    return bool((workflow.get("status") or {}).get("finishedAt"))


def find_launcher(cluster: Cluster, *, pod_name: str = "") -> Launcher:
    """This pod's image and Workflow.

    Raises `UserError` where its account may read neither: it lacks the chart's Role, and could not submit.
    """
    if not pod_name:
        if not inside_a_pod():
            return Launcher()
        pod_name = os.environ.get("EOSIN_POD_NAME") or os.environ.get("HOSTNAME", "")
    try:
        pod = cluster.get_pod(pod_name)
    except Missing:
        return Launcher()
    workflow = pod["metadata"].get("labels", {}).get(WORKFLOW_LABEL, "")
    found = cluster.get(WORKFLOW, workflow) if workflow else None
    if found is None:
        return Launcher(_image(pod), workflow)
    return Launcher(_image(pod), workflow, owner_reference(found), _kubeflow_run(cluster, found))


def stop_workflow(cluster: Cluster, name: str) -> bool:
    """Stop a Workflow as Kubeflow's Terminate does; False where it is gone.

    Raises `UserError` where this identity may not.
    """
    try:
        cluster.patch(WORKFLOW, name, {"spec": {"activeDeadlineSeconds": 0}})
    except Missing:
        return False
    return True


def owning_workflows(owned: Manifest) -> list[str]:
    """Names of the Workflows that own an object."""
    return [str(owner["name"]) for owner in owners(owned, WORKFLOW.kind)]


def _image(pod: Manifest) -> str:
    containers = pod["spec"]["containers"]
    main = next((container for container in containers if container["name"] == "main"), containers[0])
    return str(main["image"])


def owner_reference(workflow: Manifest) -> OwnerReference:
    """The reference by which an object goes when the Workflow goes."""
    metadata = workflow["metadata"]
    return OwnerReference(WORKFLOW.api_version, WORKFLOW.kind, metadata["name"], metadata["uid"])


def _kubeflow_run(cluster: Cluster, workflow: Manifest) -> KubeflowRun:
    metadata = workflow["metadata"]
    run_id = str((metadata.get("labels") or {}).get(RUN_ID_LABEL, ""))
    return KubeflowRun(namespace=cluster.namespace, run_id=run_id, workflow=metadata["name"])
