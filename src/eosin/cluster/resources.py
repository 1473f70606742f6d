"""Objects of a run on the cluster: made once, adopted where they are there, replaced where they are stale."""

import hashlib
import json
import time
from collections.abc import Callable
from typing import Literal

from eosin.cluster import names
from eosin.cluster.api import AlreadyExists, Cluster, Manifest
from eosin.cluster.names import Resource
from eosin.errors import TransientError, UserError

_ATTEMPTS = 5
_POLL_S = 2.0
_LOST_NODES = "look for pods on lost nodes: kubectl -n {} get pods -o wide"

Outcome = Literal["created", "adopted"]


def ensure(
    cluster: Cluster,
    resource: Resource,
    manifest: Manifest,
    *,
    keep: Callable[[Manifest], bool],
    replace: Callable[[Manifest], None],
) -> tuple[Manifest, Outcome]:
    """The object of `manifest`'s name: made now, or the one there where `keep` says so of it.

    Another one of this run goes through `replace`, which deletes it and waits; then it is made anew.
    Raises `UserError` where the name belongs to something else, `Missing` where the API is not installed,
    `TransientError` where somebody else makes and deletes it at the same time.
    """
    name = manifest["metadata"]["name"]
    for _ in range(_ATTEMPTS):
        try:
            return cluster.create(resource, manifest), "created"
        except AlreadyExists:
            existing = cluster.get(resource, name)
        if existing is None:
            continue
        check_same_run(existing, manifest)
        if keep(existing):
            return existing, "adopted"
        replace(existing)
    raise TransientError(f"{resource.kind} {name} is made and deleted by somebody else at the same time")


def delete_and_wait(
    cluster: Cluster,
    resource: Resource,
    existing: Manifest,
    *,
    timeout_s: float,
    propagation: str = "Background",
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Delete this very object and return once its name is free, or another's.

    Raises `TransientError` after `timeout_s`.
    """
    cluster.delete(resource, existing, propagation=propagation)
    name, uid = existing["metadata"]["name"], existing["metadata"].get("uid", "")
    for _ in range(int(timeout_s / _POLL_S)):
        left = cluster.get(resource, name)
        if left is None or left["metadata"].get("uid", "") != uid:
            return
        sleep(_POLL_S)
    raise TransientError(
        f"{resource.kind} {name} is still being deleted after {timeout_s:g} s",
        hint=_LOST_NODES.format(cluster.namespace),
    )


def is_being_deleted(existing: Manifest) -> bool:
    """Whether somebody has asked for its end; a finalizer may hold it for a while."""
    return bool(existing["metadata"].get("deletionTimestamp"))


def run_of(existing: Manifest) -> str:
    """URI of the run an object was made for; empty where eosin did not make it."""
    return names.annotation(existing, names.RUN_ANNOTATION)


def owner_uids(existing: Manifest, kind: str) -> list[str]:
    """UIDs of the objects of `kind` that own this one."""
    return [str(owner["uid"]) for owner in names.owners(existing, kind)]


def with_digest(manifest: Manifest) -> Manifest:
    """`manifest` with the digest of its specification among its annotations."""
    text = json.dumps(manifest["spec"], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    metadata = manifest["metadata"]
    annotations = {names.SPEC_ANNOTATION: digest, **metadata.get("annotations", {})}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def same_digest(existing: Manifest, wanted: Manifest) -> bool:
    """Whether both were made from the same specification."""
    before, after = (names.annotation(each, names.SPEC_ANNOTATION) for each in (existing, wanted))
    return before == after


def check_same_run(existing: Manifest, wanted: Manifest) -> None:
    """Raise `UserError` where the name is taken by what is not this run's."""
    run = run_of(wanted)
    if run_of(existing) != run:
        raise UserError(
            f"{wanted['kind']} {existing['metadata']['name']} is there already and belongs to "
            f"{run_of(existing) or 'something else'}",
            hint=f"delete it, or take another run URI than {run}",
        )
