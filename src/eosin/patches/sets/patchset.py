"""A published patch set: its manifest, and its patches in order, checked against their digests."""

import hashlib

from eosin.errors import PermanentError, UserError
from eosin.records import PatchSetManifest, PatchSetShard, RejectedPatch, load_record
from eosin.records.base import Record
from eosin.records.patchset_shard import PatchRow, decode_shard
from eosin.storage import NotFound, Store, join_uri, open_store

MANIFEST = "manifest.json"
SET_SPEC = "set.json"
CONTACT_SHEET = "contact-sheet.jpg"


class ShardMarker(Record):
    """Published after a shard, once it is whole; what the manifest is made of."""

    shard: PatchSetShard = PatchSetShard(key="", num_patches=0, sha256="")
    """The shard beside the marker."""
    snapshot_id: str
    """The snapshot of the index that the slides are of."""
    patch_px: int
    """Side of the square patches, px."""
    mpp: tuple[float, ...]
    """Magnifications of its patches, µm a pixel."""
    encoding: str
    """png or jpeg."""
    format: str = "parquet"
    """parquet or webdataset."""
    slides: tuple[str, ...] = ()
    """Slides that gave at least one patch."""
    rejected: tuple[RejectedPatch, ...] = ()
    """Positions that could not be read."""
    notes: tuple[str, ...] = ()
    """What a reader must know."""


def read_manifest(uri: str, *, store: Store | None = None) -> PatchSetManifest:
    """The manifest of the patch set at `uri`. Raises `UserError` where no whole patch set is there."""
    manifest = load_record(PatchSetManifest, store or open_store(uri), MANIFEST)
    if manifest is None:
        raise UserError(
            f"no patch set at {uri}: {MANIFEST} is not there", hint="publish it with `eosin decode RUN`"
        )
    return manifest


def read_shard(store: Store, shard: PatchSetShard) -> list[PatchRow]:
    """The patches of one shard of the set that `store` stands at. Raises `PermanentError`."""
    source = join_uri(store.uri, shard.key)
    hint = "delete the patch set's folder and decode it again"
    try:
        data = store.get(shard.key)
    except NotFound:
        raise PermanentError(f"{source} is missing", hint=hint) from None
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise PermanentError(f"{source} is not the shard that was published: its digest differs", hint=hint)
    return decode_shard(data, source=source)
