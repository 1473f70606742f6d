"""Features of slides without a run, of a grid over an index or of a patch set: one file a slide.

HDF5 files have the layout that CLAM and TRIDENT read: `features` float32 [N, D] and `coords` int64 [N, 2],
the level-0 pixel of each patch's top-left corner, with the patch's size in the attributes of `coords`.
"""

import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin import __version__
from eosin.config import RunConfig, load_config, with_overrides
from eosin.config.base import FORMS, READ_OUT_PATTERN
from eosin.config.patches import GridConfig
from eosin.errors import EosinError, UserError
from eosin.evaluation.embeddings.embed import Features, decode_or_reason, in_advance
from eosin.evaluation.embeddings.forward import Forward
from eosin.evaluation.embeddings.slide_embed import (
    ModelClock,
    Pixels,
    Read,
    SlidePatches,
    embed_in_turn,
    read_patches,
)
from eosin.evaluation.judged_model import LAST, TIMM, JudgedModel, find_model
from eosin.evaluation.plan import find_teacher
from eosin.index.rows import SlideRow
from eosin.index.snapshot import Snapshot, open_snapshot
from eosin.layout import TEACHER_CARD, TEACHER_WEIGHTS, FeaturesLayout, RunLayout
from eosin.observability import RunLog
from eosin.patches.check import check_grid_plan
from eosin.patches.geometry import extent_px
from eosin.patches.sampling.eligible import among
from eosin.patches.sampling.grid import plan_grid
from eosin.patches.sets.patchset import SET_SPEC, ShardMarker, read_manifest, read_shard
from eosin.patches.stream import open_reader
from eosin.records import PatchSetManifest, load_record, publish_once
from eosin.records.index import FeaturesManifest, FeaturesSpec, SlideLeftOut
from eosin.records.patchset import PatchSetSpec
from eosin.records.patchset_shard import PatchRow
from eosin.storage import Store, open_store

SUFFIXES = {"hdf5": "h5", "parquet": "parquet", "safetensors": "safetensors"}
_MAGNIFICATION_AT_1_MPP = 10.0
_RECORDS_AT_ONCE = 16
_SHARDS_HELD = 2
_GRID = ("mpp", "patch_px", "overlap_px", "min_foreground")


@dataclass(frozen=True)
class EmbedRequest:
    """What is asked for: a model, an index or a patch set, and which patches of which slides."""

    model: str
    """URI of a run (its newest teacher), of a teacher's folder or its safetensors file, timm:NAME, or
    timm:ARCH@URI of another safetensors file."""
    out_uri: str
    index_uri: str = ""
    patches_uri: str = ""
    """Folder of a patch set, in place of an index: its patches are taken as they are."""
    slides: tuple[str, ...] = ("*",)
    format: str = "hdf5"
    batch_size: int = 64
    read_out: str = LAST
    """Which features, as `read_out` of a task."""
    settings: tuple[str, ...] = ()
    """Of the grid over an index, as a patch set's (mpp=0.5, patch_px=224, without: the side of the pictures
    that the model takes), and of the section `patches` (patches.reader=stage)."""


@dataclass(frozen=True)
class EmbedSource:
    """Where patches come from."""

    slides: list[str]
    """Keys of the slides that could give some."""
    without: dict[str, str]
    """Why others that were asked for give none."""
    told: dict[str, Any]
    """Fields of `FeaturesSpec`."""
    patches_of: Callable[[int], SlidePatches]
    """Those of a slide, by its number in `slides`."""
    read: Read
    """Their pixels, as the model takes them, or why they could not be read."""
    row_of: Callable[[int], SlideRow | None]
    """Its row in the index; None where that is not known."""
    figures: Callable[[], dict[str, Any]]
    """Slides, patches, and what reading them takes."""
    close: Callable[[], None] = lambda: None


def grid_source(request: EmbedRequest, config: RunConfig, img_px: int) -> EmbedSource:
    """A grid over the tissue of the slides of an index. Raises as `plan_grid`."""
    grid = _grid(request, config, img_px)
    snapshot = open_snapshot(request.index_uri)
    plan = plan_grid(snapshot, config.patches, grid)
    reader = open_reader(snapshot, plan.patches, share_tiles=True)

    told = {
        "index_uri": request.index_uri, "snapshot_id": snapshot.manifest.snapshot_id,
        **{name: getattr(grid, name) for name in _GRID},
    }  # fmt: skip
    slides, rows = snapshot.rows.texts("slide", plan.slides), snapshot.rows
    return EmbedSource(
        slides, plan.excluded, told, lambda place: SlidePatches(place, slides[place], plan.slide(place)),
        partial(read_patches, reader, img_px), lambda place: rows[int(plan.slides[place])],
        lambda: check_grid_plan(plan), reader.close,
    )  # fmt: skip


def _grid(request: EmbedRequest, config: RunConfig, img_px: int) -> GridConfig:
    if any(each.startswith("kind=") and each != "kind=grid" for each in request.settings):
        raise UserError("features are of a grid over each slide", hint="decode the set, and give --patches")
    settings = [each for each in request.settings if not each.startswith("patches.")]
    settings += [f"slides={json.dumps(list(request.slides))}"]
    settings += [] if any(each.startswith("patch_px=") for each in settings) else [f"patch_px={img_px}"]
    named = with_overrides(config, [f"patches.sets.grid.{each}" for each in settings], source="the defaults")
    grid = named.patches.sets["grid"]
    assert isinstance(grid, GridConfig)
    return grid


def patch_set_source(request: EmbedRequest, img_px: int) -> EmbedSource:
    """The patches of a published set, slide by slide; two shards are held in memory.

    Raises `UserError` where no whole set is there, or none of its slides is asked for; reading, then,
    `PermanentError` where a shard is damaged.
    """
    store = open_store(request.patches_uri)
    manifest = read_manifest(request.patches_uri, store=store)
    slides = sorted(among(dict.fromkeys(manifest.slides, ""), request.slides))
    if not slides:
        raise UserError(
            f"no slide of {request.patches_uri} matches {', '.join(request.slides)}",
            hint=f"it has {len(manifest.slides)}, the first of them {next(iter(manifest.slides), '')}",
        )
    shards = _shards_by_slide(store, manifest)
    snapshot = _snapshot_of(manifest.index_uri, manifest.snapshot_id)
    read = lru_cache(_SHARDS_HELD)(lambda number: read_shard(store, manifest.shards[number]))

    def patches_of(place: int) -> SlidePatches:
        slide = slides[place]
        rows = [row for number in shards[slide] for row in read(number) if row.slide == slide]
        return SlidePatches(place, slide, rows)

    def decoded(rows: Sequence[PatchRow]) -> list[Pixels | str]:
        return [decode_or_reason(row.image, img_px) for row in rows]

    def row_of(place: int) -> SlideRow | None:
        number = snapshot.rows.find(slides[place]) if snapshot else None
        return None if number is None or snapshot is None else snapshot.rows[number]

    record = load_record(PatchSetSpec, store, SET_SPEC)
    spec = record.spec if record else {}
    told = {
        "patches_uri": request.patches_uri, "patches_digest": manifest.digest,
        "index_uri": manifest.index_uri, "snapshot_id": manifest.snapshot_id,
        "mpp": manifest.mpp[0] if len(manifest.mpp) == 1 else None, "patch_px": manifest.patch_px,
        "overlap_px": spec.get("overlap_px", 0), "min_foreground": spec.get("min_foreground"),
    }  # fmt: skip

    def figures() -> dict[str, Any]:
        read = [manifest.shards[i] for i in sorted({i for slide in slides for i in shards[slide]})]
        listed = {info.key: info.size_bytes for info in store.list()}
        sizes = [listed.get(each.key) or store.head(each.key).size_bytes for each in read]
        return {"num_slides": len(slides), "num_patches": sum(each.num_patches for each in read),
                "read_bytes": sum(sizes), "read_requests": len(read)}  # fmt: skip

    without = among({each.slide: each.reason for each in manifest.left_out}, request.slides)
    return EmbedSource(slides, without, told, patches_of, decoded, row_of, figures)


def _shards_by_slide(store: Store, manifest: PatchSetManifest) -> dict[str, list[int]]:
    """Numbers of the shards with patches of each slide, from the markers beside them."""
    found = defaultdict[str, list[int]](list)
    keys = [RunLayout.patch_set_marker_of(shard.key) for shard in manifest.shards]
    with ThreadPoolExecutor(_RECORDS_AT_ONCE) as threads:
        for number, marker in enumerate(threads.map(lambda key: load_record(ShardMarker, store, key), keys)):
            for slide in marker.slides if marker else manifest.slides:  # without one it may hold any slide
                found[slide].append(number)
    return found


def _snapshot_of(index_uri: str, snapshot_id: str) -> Snapshot | None:
    """Of a set's slides, for their sizes; a set that was carried elsewhere does without."""
    try:
        return open_snapshot(index_uri, snapshot_id) if index_uri else None
    except EosinError:
        return None


@dataclass(frozen=True)
class _Job:
    request: EmbedRequest
    model: JudgedModel
    forward: Forward
    source: EmbedSource
    names: dict[int, str]
    """Of each slide's file, by its number in the source."""

    def key(self, place: int) -> str:
        return FeaturesLayout.slide(self.names[place], SUFFIXES[self.request.format])


def embed_index(request: EmbedRequest, shard: int, num_shards: int, log: RunLog) -> FeaturesManifest | None:
    """Embed this worker's slides; whoever finishes the last one publishes the manifest (else None).

    Worker i takes every `num_shards`-th slide from the i-th on. A slide is published whole, and one that is
    there is left alone, so what was killed goes on. Raises `UserError` for a model, an index, a set or a
    format there is none of, where no slide serves, or where the folder holds other features;
    `PermanentError` where a model's embeddings are not finite or a set's shard is damaged.
    """
    if not 0 <= shard < num_shards:
        raise UserError(f"there is no shard {shard} of {num_shards}", hint="shards count from 0")
    job = _opened(request)
    with closing(job.source):
        spec = _pinned(job)
        store = open_store(request.out_uri)
        published = {info.key for info in store.list()}
        own_slides = range(shard, len(job.names), num_shards)
        missing = [
            place for place in own_slides
            if not {job.key(place), FeaturesLayout.left_out(job.names[place])} & published
        ]  # fmt: skip
        _embed(job, store, missing, len(own_slides), log)
        return _publish_if_whole(job, spec, log)


def _embed(job: _Job, store: Store, places: Sequence[int], num_slides: int, log: RunLog) -> None:
    """Publish the features of these slides; meanwhile the next are read and embedded."""
    clock, num_patches = ModelClock(job.forward), 0
    slides = in_advance(job.source.patches_of, places, num_threads=1, num_ahead=1)
    embedded = embed_in_turn(slides, job.source.read, clock, job.request.batch_size)
    published = in_advance(
        lambda each: _publish_slide(job, store, *each, log), embedded, num_threads=1, num_ahead=1
    )
    for done, num in enumerate(published, num_slides - len(places) + 1):
        num_patches += num
        log.progress(done, num_slides, "slides", model=job.request.model)
    log.event("slides-embedded", slides=len(places), patches=num_patches, data_wait_share=clock.wait_share())


def check_embedding(request: EmbedRequest) -> dict[str, Any]:
    """Figures of what `embed_index` would read, all of it; publishes nothing. Raises as it does."""
    job = _opened(request)
    with closing(job.source):
        _pinned(job, publish=False)
        return job.source.figures()


def _opened(request: EmbedRequest) -> _Job:
    if not re.fullmatch(READ_OUT_PATTERN, request.read_out):
        raise UserError(f"unknown read-out {request.read_out!r}", hint=f"it is {FORMS[READ_OUT_PATTERN]}")
    if request.format not in SUFFIXES:
        raise UserError(f"unknown format {request.format!r}", hint=f"one of {', '.join(SUFFIXES)}")
    if bool(request.index_uri) == bool(request.patches_uri):
        raise UserError("patches come from an index or from a patch set", hint="give --index or --patches")
    if request.patches_uri and request.settings:
        names = ", ".join(each.partition("=")[0] for each in request.settings)
        raise UserError(f"a patch set has its own {names}", hint="leave them away, or give --index")
    if request.batch_size < 1:
        raise UserError(f"batches of {request.batch_size} patches", hint="give a batch size of 1 or more")
    reading = [each for each in request.settings if each.startswith("patches.")]
    config = load_config("", overrides=reading)
    name, store = _model_name(request.model), open_store(request.out_uri)
    model = find_model(request.out_uri, config, name, store).reading(request.read_out)
    forward = Forward.of(model)
    source: EmbedSource = (
        patch_set_source(request, forward.img_px)
        if request.patches_uri
        else grid_source(request, config, forward.img_px)
    )
    return _Job(request, model, forward, source, _names(source.slides))


def _model_name(model: str) -> str:
    """`model` as `find_model` knows it: a teacher by its folder, whatever of it or its run was named."""
    if model.startswith(TIMM):
        return model
    if "/" not in model:
        raise UserError(
            f"{model!r} is no model", hint="URI of a run or a teacher's folder, timm:NAME or timm:ARCH@URI"
        )
    folder, _, file = model.rstrip("/").rpartition("/")
    if not file.endswith(".safetensors"):
        return find_teacher(model)
    if file != TEACHER_WEIGHTS or not open_store(folder).exists(TEACHER_CARD):
        raise UserError(
            f"{model} does not say its architecture: no {TEACHER_CARD} of a teacher is beside it",
            hint=f"name it: timm:ARCH@{model}",
        )
    return folder


def _names(keys: Sequence[str]) -> dict[int, str]:
    """Each slide's key without its suffix; with it where two slides would share a name, and where it is a
    number, as the last part of a UID is."""
    paths = [PurePosixPath(key) for key in keys]
    stems = [str(path if path.suffix[1:].isdecimal() else path.with_suffix("")) for path in paths]
    keys_too = Counter([*stems, *(key for key, stem in zip(keys, stems, strict=True) if key != stem)])
    twice = {stem for stem, number in keys_too.items() if number > 1}
    return {i: key if stem in twice else stem for i, (key, stem) in enumerate(zip(keys, stems, strict=True))}


def _pinned(job: _Job, *, publish: bool = True) -> FeaturesSpec:
    """Publish what the features are. Raises `UserError` where the folder was begun as something else."""
    request = job.request
    spec = FeaturesSpec(
        model=job.model.name, model_digest=job.model.digest, slides=request.slides, format=request.format,
        read_out=request.read_out, **job.source.told,
    )  # fmt: skip
    store, key = open_store(request.out_uri), FeaturesLayout.SPEC
    begun = (publish_once(store, key, spec) if publish else load_record(FeaturesSpec, store, key)) or spec
    moved = ("schema_version", "index_uri", "patches_uri")  # the same under another address
    names = [name for name in FeaturesSpec.model_fields if name not in moved]
    others = [name for name in names if getattr(begun, name) != getattr(spec, name)]
    if others:
        told = "; ".join(f"{name} {getattr(begun, name)} → {getattr(spec, name)}" for name in others)
        raise UserError(f"{request.out_uri} was begun as other features: {told}", hint="give another --out")
    return spec


def _publish_slide(
    job: _Job, store: Store, slide: SlidePatches, found: tuple[Features, list[int]] | str, log: RunLog
) -> int:
    """How many patches of the slide were embedded."""
    if isinstance(found, str):
        left_out = SlideLeftOut(slide=slide.slide, reason=found)
        store.put(FeaturesLayout.left_out(job.names[slide.place]), left_out.to_json())
        log.event("slide-left-out", slide=slide.slide, detail=found)
        return 0
    features, kept = found
    patches = [slide.patches[number] for number in kept]
    coords = np.array([(each.x_px, each.y_px) for each in patches], np.int64)
    mpp = np.array([each.mpp for each in patches])
    arrays: dict[str, npt.NDArray[Any]] = {"features": features, "coords": coords}
    if len(np.unique(mpp)) > 1:
        arrays["mpp"] = mpp
    encode = _ENCODERS[job.request.format]
    store.put(job.key(slide.place), encode(arrays, _attributes(job, slide.place, mpp)))
    failed = len(slide.patches) - len(features)
    log.event("slide-embedded", slide=slide.slide, patches=len(features), failed=failed)
    return len(features)


def _attributes(job: _Job, place: int, mpps: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Of the coordinates, by the names that CLAM and TRIDENT give them; without what is not known."""
    row, patch_px, mpp = job.source.row_of(place), job.source.told["patch_px"], float(mpps[0])
    told = {
        "patch_size": patch_px, "overlap": job.source.told["overlap_px"],
        "name": PurePosixPath(job.names[place]).name, "slide": job.source.slides[place],
        "model": job.model.name, "model_digest": job.model.digest,
    }  # fmt: skip
    if (mpps == mpp).all():
        told |= {"mpp": mpp, "target_magnification": _MAGNIFICATION_AT_1_MPP / mpp}
        if row is not None:
            told["patch_size_level0"] = round(extent_px(row.header, patch_px, mpp)[0])
    if row is not None:
        told |= {
            "level0_width": row.header.levels[0].width_px,
            "level0_height": row.header.levels[0].height_px,
        }
        told["level0_magnification"] = _MAGNIFICATION_AT_1_MPP / (row.header.mpp_x or mpp)
    return told


def _hdf5(arrays: dict[str, npt.NDArray[Any]], attributes: dict[str, Any]) -> bytes:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w", track_order=True) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
        file["coords"].attrs.update(attributes)
    return buffer.getvalue()


def _parquet(arrays: dict[str, npt.NDArray[Any]], attributes: dict[str, Any]) -> bytes:
    import pyarrow as pa

    from eosin.records.parquet import encode_table

    features, coords = arrays["features"], arrays["coords"]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    columns = {"x_px": coords[:, 0], "y_px": coords[:, 1], "features": vectors}
    table = pa.table(columns | {name: array for name, array in arrays.items() if name == "mpp"})
    return encode_table(
        table.replace_schema_metadata({name: str(value) for name, value in attributes.items()})
    )


def _safetensors(arrays: dict[str, npt.NDArray[Any]], attributes: dict[str, Any]) -> bytes:
    import safetensors.numpy

    told = {name: str(value) for name, value in attributes.items()}
    return bytes(safetensors.numpy.save(arrays, metadata=told))


_ENCODERS: dict[str, Callable[[dict[str, npt.NDArray[Any]], dict[str, Any]], bytes]] = {
    "hdf5": _hdf5, "parquet": _parquet, "safetensors": _safetensors,
}  # fmt: skip


def _publish_if_whole(job: _Job, spec: FeaturesSpec, log: RunLog) -> FeaturesManifest | None:
    store = open_store(job.request.out_uri)
    there = {info.key for info in store.list()}
    made = [place for place in job.names if job.key(place) in there]
    failed = [FeaturesLayout.left_out(name) for name in job.names.values()]
    failed = [key for key in failed if key in there]
    if len(made) + len(failed) < len(job.names):
        return None
    left_out = [SlideLeftOut(slide=slide, reason=why) for slide, why in sorted(job.source.without.items())]
    with ThreadPoolExecutor(_RECORDS_AT_ONCE) as threads:
        found = threads.map(lambda key: load_record(SlideLeftOut, store, key), failed)
        left_out += [record for record in found if record is not None]
    manifest = FeaturesManifest(
        spec=spec, num_slides=len(made), left_out=tuple(left_out), eosin_version=__version__
    )
    published = publish_once(store, FeaturesLayout.MANIFEST, manifest)
    log.event("features-published", slides=published.num_slides, left_out=len(published.left_out))
    return published
