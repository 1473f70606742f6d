"""Rendering of a run as a TrainJob of Kubeflow Trainer v2, its JobSet in a TrainingRuntime of its own."""

from __future__ import annotations

import copy

from eosin.cluster.jobset import render_jobset, spot_job_pools
from eosin.cluster.names import CONTAINER, RUNTIME, TRAINJOB, OwnerReference
from eosin.cluster.pods import Manifest
from eosin.config import RunConfig
from eosin.errors import UserError

_STEP_LABEL = "trainer.kubeflow.org/trainjob-ancestor-step"
# Trainer looks for its container by this name.
_CONTAINER = "node"


def render_trainjob(
    config: RunConfig, run_uri: str, *, image: str, namespace: str = "", owner: OwnerReference | None = None
) -> tuple[Manifest, Manifest]:
    """The TrainingRuntime and the TrainJob that train `run_uri`; apply them in this order.

    Trainer v2 knows no elastic world, so it is given none: without a `torch` policy it starts the JobSet
    as it stands, and the world stays elastic between the pools' minima and maxima by eosin's own agents.
    The runtime belongs to one run, since it holds the run's pools and commands.

    Raises `UserError` as `render_jobset` does, and for spot pools in Jobs of their own.
    """
    if spot_job_pools(config):
        raise UserError("a TrainJob holds the pods of all pools", hint="set cluster.spot_as to jobset")
    jobset = render_jobset(config, run_uri, image=image, namespace=namespace, owner=owner)
    metadata = jobset["metadata"]
    labels = {key: value for key, value in metadata["labels"].items() if not key.startswith("kueue.")}
    anchor = config.cluster.pools[0]
    runtime: Manifest = {
        "apiVersion": TRAINJOB.api_version,
        "kind": RUNTIME.kind,
        "metadata": {**metadata, "labels": labels},
        "spec": {
            "mlPolicy": {"numNodes": anchor.min_nodes},
            "template": {
                "metadata": {"labels": labels, "annotations": metadata["annotations"]},
                "spec": _for_trainer(jobset["spec"], anchor.name),
            },
        },
    }
    job: Manifest = {
        "apiVersion": TRAINJOB.api_version,
        "kind": TRAINJOB.kind,
        # A queue is named by the TrainJob: Kueue would else admit the JobSet a second time.
        "metadata": metadata,
        "spec": {
            "runtimeRef": {"apiGroup": TRAINJOB.group, "kind": RUNTIME.kind, "name": metadata["name"]},
            "trainer": {"numNodes": anchor.min_nodes},
        },
    }
    return runtime, job


def _for_trainer(spec: Manifest, anchor: str) -> Manifest:
    """The JobSet's spec with the anchor marked as Trainer's own job and its container as Trainer names it."""
    spec = copy.deepcopy(spec)
    # Trainer removes its TrainJob, and the JobSet with it; the JobSet alone would be made again.
    spec.pop("ttlSecondsAfterFinished", None)
    for job in spec["replicatedJobs"]:
        if job["name"] != anchor:
            continue
        job["template"]["metadata"] = {"labels": {_STEP_LABEL: "trainer"}}
        inner = job["template"]["spec"]
        for container in inner["template"]["spec"]["containers"]:
            if container["name"] == CONTAINER:
                container["name"] = _CONTAINER
        for rule in inner["podFailurePolicy"]["rules"]:
            if "onExitCodes" in rule:
                rule["onExitCodes"]["containerName"] = _CONTAINER
    return spec
