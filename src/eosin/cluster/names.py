"""Names, labels and ownership of everything eosin creates on a cluster."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RUN_ANNOTATION = "eosin.dev/run"
CONFIG_ANNOTATION = "eosin.dev/config-digest"
CANCELLED_ANNOTATION = "eosin.dev/cancelled"
"""On a JobSet that a person has cancelled, until it is gone."""
FOLLOWED_ANNOTATION = "eosin.dev/followed-at"
"""On a JobSet: when a launcher last saw it, RFC 3339."""
PROGRESS_ANNOTATION = "eosin.dev/progress"
"""On a JobSet: how far training is, in a line for people; a minute old at most while a launcher follows."""
SPEC_ANNOTATION = "eosin.dev/spec-digest"
SPOT_JOBS_ANNOTATION = "eosin.dev/spot-jobs"
"""On a JobSet: names of the Jobs that belong to it, joined by commas."""
ELASTIC_ANNOTATION = "kueue.x-k8s.io/elastic-job"
REQUIRED_TOPOLOGY_ANNOTATION = "kueue.x-k8s.io/podset-required-topology"
PREFERRED_TOPOLOGY_ANNOTATION = "kueue.x-k8s.io/podset-preferred-topology"
EXCLUSIVE_TOPOLOGY_ANNOTATION = "alpha.jobset.sigs.k8s.io/exclusive-topology"
RUN_ID_LABEL = "pipeline/runid"
"""On a Workflow: by what Kubeflow Pipelines knows its run."""
WORKFLOW_LABEL = "workflows.argoproj.io/workflow"
"""On every pod of a Workflow."""
MANAGED_BY = "app.kubernetes.io/managed-by"
JOBSET_NAME_LABEL = "jobset.sigs.k8s.io/jobset-name"
REPLICATED_JOB_LABEL = "jobset.sigs.k8s.io/replicatedjob-name"
RESTART_ATTEMPT_LABEL = "jobset.sigs.k8s.io/restart-attempt"

CONTAINER = "trainer"
RENDEZVOUS_CONTAINER = "rendezvous"
WATCHER_CONTAINER = "watcher"

_SLUG_CHARS = 14


@dataclass(frozen=True)
class Resource:
    """A kind of namespaced object, as the API server addresses it."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """What its manifests bear as apiVersion."""
        return f"{self.group}/{self.version}"


JOBSET = Resource("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet")
JOB = Resource("batch", "v1", "jobs", "Job")
BUDGET = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
WORKFLOW = Resource("argoproj.io", "v1alpha1", "workflows", "Workflow")


@dataclass(frozen=True)
class OwnerReference:
    """The object whose deletion takes ours along: the run's Workflow, never the launcher's pod."""

    api_version: str
    kind: str
    name: str
    uid: str

    def manifest(self) -> dict[str, object]:
        """As it stands in an object's metadata."""
        return {
            "apiVersion": self.api_version,
            "kind": self.kind,
            "name": self.name,
            "uid": self.uid,
            "controller": False,
            "blockOwnerDeletion": False,
        }


def jobset_name(run_uri: str) -> str:
    """The one JobSet name of a run: readable, unique by a hash, and the same on every submission.

    At most 29 characters, so that `NAME-POOL-more-0-999` stays within the 63 of a host name.
    """
    uri = run_uri.rstrip("/")
    slug = re.sub(r"[^a-z0-9]+", "-", uri.rsplit("/", 1)[-1].lower())[:_SLUG_CHARS].strip("-")
    digest = hashlib.sha256(uri.encode()).hexdigest()[:8]
    return "-".join(part for part in ("eosin", slug, digest) if part)


def labels(name: str) -> dict[str, str]:
    """Recommended labels of every object of one training."""
    return {
        "app.kubernetes.io/name": "eosin",
        "app.kubernetes.io/component": "train",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/part-of": "eosin",
        MANAGED_BY: "eosin",
    }


def annotation(existing: Mapping[str, Any], key: str) -> str:
    """An annotation of an object; empty where it has none of that key."""
    return str((existing["metadata"].get("annotations") or {}).get(key, ""))


def owners(existing: Mapping[str, Any], kind: str = "") -> list[dict[str, Any]]:
    """References to the objects that own this one; with `kind`, to those of that kind."""
    found = existing["metadata"].get("ownerReferences") or []
    return [owner for owner in found if kind in ("", owner["kind"])]


def condition(existing: Mapping[str, Any], kind: str, status: str = "True") -> dict[str, Any] | None:
    """The condition of a kind in an object's status, where it stands at `status`; None where it does not."""
    found = (existing.get("status") or {}).get("conditions") or []
    return next((each for each in found if (each["type"], each["status"]) == (kind, status)), None)
