"""Features of the slides of an index, without a run: a grid of patches a slide, one file a slide.

HDF5 files have the layout that CLAM and TRIDENT read: `features` float32 [N, D] and `coords` int64 [N, 2],
the level-0 pixel of each patch's top-left corner, with the patch's size in the attributes of `coords`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin import __version__
from eosin.config import load_config
from eosin.config.base import FORMS, READ_OUT_PATTERN
from eosin.config.patches import GridConfig
from eosin.errors import UserError
from eosin.evaluation.embeddings.embed import Features
from eosin.evaluation.embeddings.forward import Forward
from eosin.evaluation.embeddings.slide_embed import embed_patches
from eosin.evaluation.judged_model import LAST, TIMM, JudgedModel, find_model
from eosin.index.rows import SlideRow
from eosin.index.snapshot import open_snapshot
from eosin.layout import FeaturesLayout
from eosin.observability import RunLog
from eosin.patches.geometry import extent_px
from eosin.patches.sampling.grid import GridPlan, plan_grid
from eosin.patches.stream import GuardedReader, open_reader
from eosin.records import load_record, publish_once
from eosin.records.index import FeaturesManifest, FeaturesSpec, SlideLeftOut
from eosin.storage import Store, open_store

Coords = npt.NDArray[np.int64]
SUFFIXES = {"hdf5": "h5", "parquet": "parquet", "safetensors": "safetensors"}
_MAGNIFICATION_AT_1_MPP = 10.0
_RECORDS_AT_ONCE = 16


@dataclass(frozen=True)
class EmbedRequest:
    """What is asked for: a model, an index, and which patches of which slides."""

    model: str
    """URI of a teacher's folder, timm:NAME, or timm:ARCH@URI of a safetensors file."""
    index_uri: str
    out_uri: str
    mpp: float = 0.5
    patch_px: int | None = None
    """None: the side of the pictures that the model takes."""
    overlap_px: int = 0
    min_foreground: float = 0.4
    slides: tuple[str, ...] = ("*",)
    format: str = "hdf5"
    batch_size: int = 64
    read_out: str = LAST
    """Which features, as `read_out` of a task."""
    settings: tuple[str, ...] = ()
    """Of the section `patches`, such as patches.reader=stage."""


@dataclass(frozen=True)
class _Job:
    request: EmbedRequest
    store: Store
    model: JudgedModel
    forward: Forward
    plan: GridPlan
    names: dict[int, str]
    """Of each slide's file, by its number in the plan."""

    def key(self, place: int) -> str:
        return FeaturesLayout.slide(self.names[place], SUFFIXES[self.request.format])

    def row(self, place: int) -> SlideRow:
        return self.plan.snapshot.rows[int(self.plan.slides[place])]


def embed_index(request: EmbedRequest, shard: int, num_shards: int, log: RunLog) -> FeaturesManifest | None:
    """Embed this worker's slides; whoever finishes the last one publishes the manifest (else None).

    Worker i takes every `num_shards`-th slide from the i-th on. A slide is published whole, and one that is
    there is left alone, so what was killed goes on. Raises `UserError` for a model, an index or a format
    there is none of, where no slide serves, or where the folder holds other features; `PermanentError`
    where a model's embeddings are not finite.
    """
    if not 0 <= shard < num_shards:
        raise UserError(f"there is no shard {shard} of {num_shards}", hint="shards count from 0")
    if not re.fullmatch(READ_OUT_PATTERN, request.read_out):
        raise UserError(f"unknown read-out {request.read_out!r}", hint=f"it is {FORMS[READ_OUT_PATTERN]}")
    if request.format not in SUFFIXES:
        raise UserError(f"unknown format {request.format!r}", hint=f"one of {', '.join(SUFFIXES)}")
    job = _opened(request)
    spec = _pinned(job)
    published = {info.key for info in job.store.list()}
    own = range(shard, len(job.plan.slides), num_shards)
    with open_reader(job.plan.snapshot, job.plan.patches, share_tiles=True) as reader:
        for done, place in enumerate(own, 1):
            if not {job.key(place), FeaturesLayout.left_out(job.names[place])} & published:
                _embed_slide(job, reader, place, log)
            log.progress(done, len(own), "slides", model=request.model)
    return _publish_if_whole(job, spec, log)


def _opened(request: EmbedRequest) -> _Job:
    if not (request.model.startswith(TIMM) or "/" in request.model):
        raise UserError(
            f"{request.model!r} is no model", hint="the URI of a teacher's folder, timm:NAME or timm:ARCH@URI"
        )
    config = load_config("", overrides=list(request.settings))
    store, snapshot = open_store(request.out_uri), open_snapshot(request.index_uri)
    model = find_model(request.out_uri, config, request.model, store).reading(request.read_out)
    forward = Forward.of(model)
    grid = GridConfig(
        mpp=request.mpp, patch_px=request.patch_px or forward.img_px, overlap_px=request.overlap_px,
        min_foreground=request.min_foreground, slides=request.slides,
    )  # fmt: skip
    plan = plan_grid(snapshot, config.patches, grid)
    return _Job(request, store, model, forward, plan, _names(plan))


def _names(plan: GridPlan) -> dict[int, str]:
    """Each slide's key without its suffix; with it where two slides would share a name."""
    keys = [plan.snapshot.rows[int(number)].slide for number in plan.slides]
    stems = [str(PurePosixPath(key).with_suffix("")) for key in keys]
    twice = {stem for stem in stems if stems.count(stem) > 1} if len(set(stems)) < len(stems) else set()
    return {i: key if stem in twice else stem for i, (key, stem) in enumerate(zip(keys, stems, strict=True))}


def _pinned(job: _Job) -> FeaturesSpec:
    """Publish what the features are. Raises `UserError` where the folder was begun as something else."""
    request, grid = job.request, job.plan.grid
    spec = FeaturesSpec(
        model=request.model, model_digest=job.model.digest, index_uri=request.index_uri,
        snapshot_id=job.plan.snapshot.manifest.snapshot_id, mpp=grid.mpp, patch_px=job.plan.patches.patch_px,
        overlap_px=grid.overlap_px, min_foreground=grid.min_foreground, slides=grid.slides,
        format=request.format, read_out=request.read_out,
    )  # fmt: skip
    begun = publish_once(job.store, FeaturesLayout.SPEC, spec)
    same = ("schema_version", "index_uri")
    names = [name for name in FeaturesSpec.model_fields if name not in same]
    others = [name for name in names if getattr(begun, name) != getattr(spec, name)]
    if others:
        told = "; ".join(f"{name} {getattr(begun, name)} → {getattr(spec, name)}" for name in others)
        raise UserError(f"{request.out_uri} was begun as other features: {told}", hint="give another --out")
    return spec


def _embed_slide(job: _Job, reader: GuardedReader, place: int, log: RunLog) -> None:
    requests, row = job.plan.slide(place), job.row(place)
    found = embed_patches(requests, reader, job.forward, job.request.batch_size, row.slide)
    if isinstance(found, str):
        left_out = SlideLeftOut(slide=row.slide, reason=found)
        job.store.put(FeaturesLayout.left_out(job.names[place]), left_out.to_json())
        log.event("slide-left-out", slide=row.slide, detail=found)
        return
    features, kept = found
    coords = np.array([(requests[i].x_px, requests[i].y_px) for i in kept], np.int64)
    data = _ENCODERS[job.request.format](features, coords, _attributes(job, place))
    job.store.put(job.key(place), data)
    log.event("slide-embedded", slide=row.slide, patches=len(features), failed=len(requests) - len(features))


def _attributes(job: _Job, place: int) -> dict[str, Any]:
    """Of the coordinates, by the names that CLAM and TRIDENT give them."""
    row, patches, grid = job.row(place), job.plan.patches, job.plan.grid
    finest = row.header.levels[0]
    width_px, _ = extent_px(row.header, patches.patch_px, grid.mpp)
    return {
        "patch_size": patches.patch_px, "patch_size_level0": round(width_px), "overlap": grid.overlap_px,
        "level0_width": finest.width_px, "level0_height": finest.height_px,
        "level0_magnification": _MAGNIFICATION_AT_1_MPP / (row.header.mpp_x or grid.mpp),
        "target_magnification": _MAGNIFICATION_AT_1_MPP / grid.mpp, "mpp": grid.mpp,
        "name": PurePosixPath(job.names[place]).name, "slide": row.slide,
        "model": job.request.model, "model_digest": job.model.digest,
    }  # fmt: skip


def _hdf5(features: Features, coords: Coords, attributes: dict[str, Any]) -> bytes:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w", track_order=True) as file:
        file.create_dataset("features", data=features)
        file.create_dataset("coords", data=coords).attrs.update(attributes)
    return buffer.getvalue()


def _parquet(features: Features, coords: Coords, attributes: dict[str, Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    table = pa.table({"x_px": coords[:, 0], "y_px": coords[:, 1], "features": vectors})
    buffer = io.BytesIO()
    told = {name: str(value) for name, value in attributes.items()}
    pq.write_table(table.replace_schema_metadata(told), buffer, compression="zstd")
    return buffer.getvalue()


def _safetensors(features: Features, coords: Coords, attributes: dict[str, Any]) -> bytes:
    import safetensors.numpy

    told = {name: str(value) for name, value in attributes.items()}
    return bytes(safetensors.numpy.save({"features": features, "coords": coords}, metadata=told))


_ENCODERS: dict[str, Callable[[Features, Coords, dict[str, Any]], bytes]] = {
    "hdf5": _hdf5, "parquet": _parquet, "safetensors": _safetensors,
}  # fmt: skip


def _publish_if_whole(job: _Job, spec: FeaturesSpec, log: RunLog) -> FeaturesManifest | None:
    there = {info.key for info in job.store.list()}
    made = [place for place in job.names if job.key(place) in there]
    failed = [place for place in job.names if FeaturesLayout.left_out(job.names[place]) in there]
    if len(made) + len(failed) < len(job.names):
        return None
    never = [SlideLeftOut(slide=slide, reason=why) for slide, why in sorted(job.plan.excluded.items())]
    manifest = FeaturesManifest(
        spec=spec, num_slides=len(made), left_out=(*never, *_left_out(job, failed)), eosin_version=__version__
    )
    published = publish_once(job.store, FeaturesLayout.MANIFEST, manifest)
    log.event("features-published", slides=published.num_slides, left_out=len(published.left_out))
    return published


def _left_out(job: _Job, places: Sequence[int]) -> list[SlideLeftOut]:
    keys = [FeaturesLayout.left_out(job.names[place]) for place in places]
    with ThreadPoolExecutor(_RECORDS_AT_ONCE) as threads:
        found = threads.map(lambda key: load_record(SlideLeftOut, job.store, key), keys)
        return [record for record in found if record is not None]
