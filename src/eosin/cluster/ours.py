"""Whether an object on the cluster is this run's, and still what would be made now."""

from __future__ import annotations

import hashlib
import json

from eosin.cluster import names
from eosin.cluster.api import Manifest
from eosin.errors import UserError


def with_digest(manifest: Manifest, spec: Manifest | None = None) -> Manifest:
    """`manifest` with the digest of `spec`, its own unless given, among its annotations."""
    text = json.dumps(spec or manifest["spec"], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    metadata = manifest["metadata"]
    annotations = {names.SPEC_ANNOTATION: digest, **metadata.get("annotations", {})}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def same_digest(existing: Manifest, wanted: Manifest) -> bool:
    before = (existing["metadata"].get("annotations") or {}).get(names.SPEC_ANNOTATION)
    return bool(before == wanted["metadata"]["annotations"][names.SPEC_ANNOTATION])


def check_ours(existing: Manifest, wanted: Manifest) -> None:
    """Raise `UserError` where the name is taken by what is not this run's."""
    run = wanted["metadata"]["annotations"][names.RUN_ANNOTATION]
    found = (existing["metadata"].get("annotations") or {}).get(names.RUN_ANNOTATION)
    if found != run:
        raise UserError(
            f"{wanted['kind']} {existing['metadata']['name']} is there already and belongs to "
            f"{found or 'something else'}",
            hint=f"delete it, or take another run URI than {run}",
        )
