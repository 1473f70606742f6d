"""`eosin decode`: the held-out patch set of a run, as immutable shards with a manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from eosin import __version__
from eosin.config import RunConfig
from eosin.config.patches import HELD_OUT, EncodingConfig
from eosin.errors import PermanentError, UserError
from eosin.index.snapshot import Snapshot, open_snapshot
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.patches.contact_sheet import contact_sheet
from eosin.patches.geometry import extent_px
from eosin.patches.patchset import CONTACT_SHEET, ShardMarker, read_manifest, read_shard
from eosin.patches.request import PatchBatch, PatchRequest
from eosin.patches.sampler import Sampler
from eosin.patches.stream import PatchStream
from eosin.records import PatchSetManifest, PatchSetShard, RejectedPatch
from eosin.records.patchset_shard import PatchRow, encode_shard
from eosin.runs import load_pin, load_run
from eosin.slides.errors import SlideError
from eosin.storage import NotFound, PreconditionFailed, Store, join_uri, open_store

_BATCH = 64
_ON_CONTACT_SHEET = 48
_PNG_LEVEL = 3


def decode_shard(
    run_uri: str, *, name: str = HELD_OUT, shard: int, num_shards: int, log: RunLog
) -> PatchSetShard:
    """Draw, decode and publish shard `shard` of `num_shards`; a shard already published is left alone.

    Patch i of the set is the same whatever `num_shards`; a shard holds a contiguous part of them, and
    memory is bounded by its encoded images. Raises `UserError` for a set the configuration does not
    have, or where no slide serves.
    """
    store, config, snapshot = open_decoding(run_uri, name, shard, num_shards)
    done = is_published(store, name, shard, num_shards)
    if done is not None:
        log.event("shard-already-there", shard=shard, num_patches=done.shard.num_patches)
        return done.shard
    sampler, notes = held_out_sampler(snapshot, config, name)
    rows, rejected = _draw_rows(sampler, config, _part(config, shard, num_shards), log)
    marker = ShardMarker(
        shard=PatchSetShard(key="", num_patches=len(rows), sha256=""),
        snapshot_id=snapshot.manifest.snapshot_id,
        patch_px=config.patches.patch_px,
        mpp=config.patches.shown_mpp,
        encoding=config.patches.heldout.encoding,
        slides=tuple(sorted({row.slide for row in rows})),
        rejected=rejected,
        notes=notes,
    )
    return publish_shard(store, name, shard, num_shards, encode_shard(rows), marker)


def is_published(store: Store, name: str, shard: int, num_shards: int) -> ShardMarker | None:
    """The marker of a shard that is there whole; None for one to be decoded.

    A shard that was deleted under its marker is decoded again, to the same bytes.
    """
    marker = _marker(store, RunLayout.patch_set_shard_marker(name, shard, num_shards))
    whole = marker is not None and store.exists(RunLayout.patch_set_shard(name, shard, num_shards))
    return marker if whole else None


def publish_shard(
    store: Store, name: str, shard: int, num_shards: int, data: bytes, marker: ShardMarker
) -> PatchSetShard:
    """Publish a shard's bytes, then its marker with key and digest filled in."""
    key = RunLayout.patch_set_shard(name, shard, num_shards)
    named = marker.shard.model_copy(update={"key": _in_folder(name, key), "sha256": _sha256(data)})
    store.put(key, data)
    whole = marker.model_copy(update={"shard": named})
    store.put(RunLayout.patch_set_shard_marker(name, shard, num_shards), whole.to_json())
    return named


def publish_patch_set(run_uri: str, name: str, num_shards: int, log: RunLog) -> PatchSetManifest:
    """Publish the manifest once all shards are there, a contact sheet before it; a manifest that is
    there already wins, and is returned.

    Raises `UserError` naming the shards that are missing.
    """
    store = open_store(run_uri)
    folder_uri = join_uri(run_uri, RunLayout.patch_set(name))
    if store.exists(RunLayout.patch_set_manifest(name)):
        return read_manifest(folder_uri)
    markers = _all_markers(store, run_uri, name, num_shards)
    manifest = _manifest(name, markers)
    sheet = contact_sheet(_sample(open_store(folder_uri), manifest))
    store.put(RunLayout.patch_set(name) + CONTACT_SHEET, sheet)
    try:
        store.put(RunLayout.patch_set_manifest(name), manifest.to_json(), if_none_match=True)
    except PreconditionFailed:
        return read_manifest(folder_uri)
    log.event("patch-set-published", name=name, num_patches=manifest.num_patches, digest=manifest.digest[:16],
              slides=len(manifest.slides), rejected=len(manifest.rejected))  # fmt: skip
    return manifest


def held_out_sampler(snapshot: Snapshot, config: RunConfig, name: str) -> tuple[Sampler, tuple[str, ...]]:
    """The sampler of the held-out set, and what a reader of the set must know of it.

    Where no slide could be held out (all are one patient's, or those held out serve no patch) all
    slides are used, and a note says so. Raises `UserError` where none of those serves either.
    """
    patches = config.patches.model_copy(update={"patches_per_visit": 1})
    seed = int.from_bytes(hashlib.blake2b(f"{config.seed}/{name}".encode(), digest_size=8).digest(), "little")
    try:
        return Sampler(snapshot, patches, seed=seed, split="heldout"), ()
    except UserError as error:
        reason = error.message.splitlines()[0]
    note = f"nothing is held out from training: {reason}; the patches come from the training slides"
    return Sampler(snapshot, patches, seed=seed, split="all"), (note,)


def encode_image(pixels: npt.NDArray[np.uint8], config: EncodingConfig) -> bytes:
    """PNG or JPEG bytes of [h, w, 3] RGB pixels."""
    jpeg = config.encoding == "jpeg"
    quality = [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality]
    options = quality if jpeg else [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL]
    done, data = cv2.imencode(".jpg" if jpeg else ".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise PermanentError(f"a patch of shape {pixels.shape} cannot be encoded as {config.encoding}")
    return bytes(data)


def open_decoding(run_uri: str, name: str, shard: int, num_shards: int) -> tuple[Store, RunConfig, Snapshot]:
    """What decoding one shard of a run's patch set needs. Raises `UserError` where there is no such one."""
    store = open_store(run_uri)
    config, pin = load_run(run_uri, store=store), load_pin(run_uri, store=store)
    known = [HELD_OUT, *config.patches.sets]
    if name not in known:
        raise UserError(
            f"the run has no patch set {name!r}; it has {', '.join(known)}",
            hint="a grid is declared when a run is begun: patches.sets.NAME",
        )
    if not 0 <= shard < num_shards:
        raise UserError(f"there is no shard {shard} of {num_shards}", hint="shards count from 0")
    return store, config, open_snapshot(pin.index_uri, pin.snapshot_id)


def _part(config: RunConfig, shard: int, num_shards: int) -> range:
    """The patches of one shard: contiguous, and as many as any other's to within one."""
    total = config.patches.heldout.num_patches
    return range(shard * total // num_shards, (shard + 1) * total // num_shards)


def _draw_rows(
    sampler: Sampler, config: RunConfig, part: range, log: RunLog
) -> tuple[list[PatchRow], tuple[RejectedPatch, ...]]:
    rows: list[PatchRow] = []
    refused: list[tuple[PatchRequest, SlideError]] = []
    wanted = ((0, part[at : at + _BATCH]) for at in range(0, len(part), _BATCH))

    def reject(request: PatchRequest, error: SlideError) -> None:
        refused.append((request, error))

    with PatchStream(sampler, log, on_reject=reject) as stream:
        for batch in stream.batches(wanted):
            rows += _rows_of(sampler.snapshot, config, batch)
            log.progress(len(rows), len(part), "patches")
    refused.sort(key=lambda failure: (failure[0].index, failure[0].attempt))
    return rows, tuple(rejected_patch(sampler.snapshot, *failure) for failure in refused)


def _rows_of(snapshot: Snapshot, config: RunConfig, batch: PatchBatch) -> Iterator[PatchRow]:
    side_px, encoding = config.patches.patch_px, config.patches.heldout
    for pixels, request in zip(batch.pixels, batch.requests, strict=True):
        yield encode_row(snapshot, request, pixels, side_px, encoding, split=HELD_OUT)


def encode_row(
    snapshot: Snapshot,
    request: PatchRequest,
    pixels: npt.NDArray[np.uint8],
    patch_px: int,
    encoding: EncodingConfig,
    split: str = "",
) -> PatchRow:
    """The row of a patch set for `pixels` [patch_px, patch_px, 3]."""
    row = snapshot.rows[request.slide]
    assert row.tissue is not None
    width_px, height_px = extent_px(row.header, patch_px, request.mpp)
    return PatchRow(
        image=encode_image(pixels, encoding),
        slide=row.slide,
        x_px=request.x_px,
        y_px=request.y_px,
        mpp=request.mpp,
        foreground=float(row.tissue.fraction(request.x_px, request.y_px, width_px, height_px)),
        patient=row.patient,
        split=split,
    )


def rejected_patch(snapshot: Snapshot, request: PatchRequest, error: SlideError) -> RejectedPatch:
    """The record of a patch that could not be read."""
    slide = snapshot.rows[request.slide].slide
    return RejectedPatch(slide=slide, x_px=request.x_px, y_px=request.y_px, mpp=request.mpp,
                         reason=f"{error.reason}: {error.message}")  # fmt: skip


def _marker(store: Store, key: str) -> ShardMarker | None:
    try:
        return ShardMarker.from_json(store.get(key), source=join_uri(store.uri, key))
    except NotFound:
        return None


def _all_markers(store: Store, run_uri: str, name: str, num_shards: int) -> list[ShardMarker]:
    found = [_marker(store, RunLayout.patch_set_shard_marker(name, i, num_shards)) for i in range(num_shards)]
    missing = [str(number) for number, marker in enumerate(found) if marker is None]
    if missing:
        raise UserError(
            f"patch set {name} of {run_uri} is not whole: of {num_shards} shards these are missing: "
            + ", ".join(missing),
            hint="decode them first: `eosin decode`",
        )
    return [marker for marker in found if marker is not None]


def _manifest(name: str, markers: list[ShardMarker]) -> PatchSetManifest:
    first = markers[0]
    shards = tuple(marker.shard for marker in markers)
    return PatchSetManifest(
        name=name,
        digest=_sha256("".join(shard.sha256 for shard in shards).encode()),
        patch_px=first.patch_px,
        mpp=first.mpp,
        encoding=first.encoding,
        num_patches=sum(shard.num_patches for shard in shards),
        shards=shards,
        snapshot_id=first.snapshot_id,
        slides=tuple(sorted({slide for marker in markers for slide in marker.slides})),
        rejected=tuple(patch for marker in markers for patch in marker.rejected),
        notes=tuple(dict.fromkeys(note for marker in markers for note in marker.notes)),
        eosin_version=__version__,
    )


def _sample(store: Store, manifest: PatchSetManifest) -> list[PatchRow]:
    """Patches at even distances through the set."""
    stride = max(1, -(-manifest.num_patches // _ON_CONTACT_SHEET))
    found: list[PatchRow] = []
    first = 0
    for shard in manifest.shards:
        if -first % stride < shard.num_patches:
            found += read_shard(store, shard)[-first % stride :: stride]
        first += shard.num_patches
    return found


def _in_folder(name: str, key: str) -> str:
    return key.removeprefix(RunLayout.patch_set(name))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
