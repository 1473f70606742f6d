"""Patches of labelled slides and their embeddings: a grid over their tissue, stored slide by slide."""

import glob
import hashlib
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from PIL import Image
from safetensors import SafetensorError

from eosin.config import RunConfig
from eosin.config.index import IndexConfig, SlidesConfig, TissueConfig
from eosin.config.patches import GridConfig, PatchesConfig
from eosin.errors import PermanentError, UserError
from eosin.evaluation.datasets.slide_dataset import SlideDataset
from eosin.evaluation.embeddings.embed import Features, in_advance
from eosin.evaluation.embeddings.forward import Forward
from eosin.evaluation.judged_model import JudgedModel
from eosin.evaluation.transform import TRANSFORM, TRANSFORM_VERSION, fit
from eosin.index.publish import publish_snapshot
from eosin.index.rows import SlideRow
from eosin.index.scan import scan_shard
from eosin.index.snapshot import Snapshot, open_snapshot
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.patches.request import PatchRequest
from eosin.patches.sampling.counter_rng import uniforms
from eosin.patches.sampling.eligible import find_eligible
from eosin.patches.sampling.grid import grid_positions, reading_config
from eosin.patches.stream import GuardedReader, num_cores, open_reader
from eosin.process import Closing
from eosin.slides.errors import SlideError
from eosin.storage import NotFound, Store, join_uri, open_store

# eva's foreground, so that both look at the same tissue.
_TISSUE = TissueConfig(method="saturation", min_area_um2=0)


@dataclass(frozen=True)
class SlidePlan:
    """The slides of a dataset that can be read, and how their patches are drawn."""

    snapshot: Snapshot
    reading: PatchesConfig
    grid: GridConfig
    num_patches: int
    places: dict[int, int]
    """Row of the dataset to row of the snapshot."""
    dropped: tuple[dict[str, str], ...]
    """Slides left out before any patch was read: source and reason."""

    def row(self, place: int) -> SlideRow:
        """The index row of the dataset's row `place`."""
        return self.snapshot.rows[self.places[place]]

    def requests(self, place: int) -> list[PatchRequest]:
        """At most `num_patches` of the slide's grid, those with the smallest of a stable hash, in order."""
        number = self.places[place]
        x, y = grid_positions(self.snapshot.rows[number], self.grid, self.reading.patch_px)
        chosen = np.arange(len(x))
        if len(x) > self.num_patches:
            draws = uniforms(0, "slide-patches", 0, range(len(x)), 1)[:, 0]
            chosen = np.sort(np.argsort(draws, kind="stable")[: self.num_patches])
        return [PatchRequest(0, int(i), number, int(x[i]), int(y[i]), self.grid.mpp) for i in chosen]


def plan_slides(
    run_uri: str,
    config: RunConfig,
    dataset: SlideDataset,
    grid: GridConfig,
    *,
    num_patches: int,
    overrides: str | None,
    log: RunLog,
) -> SlidePlan:
    """Index the labelled slides of `dataset` inside the run, where that is not done yet, and plan patches.

    At most `num_patches` a slide, on `grid`; `overrides` is a table of what the slides' headers lack.
    Raises `UserError` where none of them can be read.
    """
    keys, dropped = _find_keys(dataset)
    indexing = _indexing_config(run_uri, config, overrides, dataset, sorted(set(keys.values())))
    scan_shard(indexing, 0, 1, log)
    manifest = publish_snapshot(indexing, 1, log)
    snapshot = open_snapshot(indexing.index.uri, manifest.snapshot_id)
    reading = reading_config(config.patches, grid)
    eligible = find_eligible(snapshot, reading, "all")
    usable = {snapshot.rows[int(number)].slide: int(number) for number in eligible.rows}
    places = {row: usable[key] for row, key in keys.items() if key in usable}
    dropped += [
        {"source": key, "reason": eligible.excluded.get(key, "no slide was made of it")}
        for key in keys.values()
        if key not in usable
    ]
    return SlidePlan(snapshot, reading, grid, num_patches, places, tuple(dropped))


def _indexing_config(
    run_uri: str, config: RunConfig, overrides: str | None, dataset: SlideDataset, keys: Sequence[str]
) -> RunConfig:
    """As the run's own, but of these slides, into a folder of the run that depends on them alone."""
    identity = "\x1f".join([dataset.slides_uri, overrides or "", *keys])
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    index = IndexConfig(
        uri=join_uri(run_uri, RunLayout.slide_index(name)),
        num_shards=1,
        slides_in_flight=config.index.slides_in_flight,
        tissue=_TISSUE,
    )
    slides = SlidesConfig(uri=dataset.slides_uri, overrides=overrides, include=tuple(map(glob.escape, keys)))
    return config.model_copy(update={"index": index, "slides": slides})


def _find_keys(dataset: SlideDataset) -> tuple[dict[int, str], list[dict[str, str]]]:
    """Key of each labelled slide: named by its key, its file name, or that without its ending."""
    by_name = defaultdict(set)
    for key in (info.key for info in open_store(dataset.slides_uri).list()):
        path = PurePosixPath(key)
        for name in (key, path.name, path.stem):
            by_name[name].add(key)
    found: dict[int, str] = {}
    dropped = []
    for row, sample in enumerate(dataset.samples):
        keys = by_name.get(sample.source, set())
        if not sample.label:
            continue
        if sample.source in keys or len(keys) == 1:
            found[row] = sample.source if sample.source in keys else next(iter(keys))
        else:
            reason = "the slide is missing" if not keys else f"{len(keys)} slides have this name"
            dropped.append({"source": sample.source, "reason": reason})
    rows_of = defaultdict(list)
    for row, key in found.items():
        rows_of[key].append(dataset.samples[row].source)
    if twice := next((names for names in rows_of.values() if len(names) > 1), None):
        raise UserError(f"{dataset.uri} names one slide {len(twice)} times: {', '.join(twice)}")
    if not found:
        first = f"; the first, {dropped[0]['source']}: {dropped[0]['reason']}" if dropped else ""
        raise UserError(
            f"none of the {len(dataset.samples)} slides of {dataset.uri} is at {dataset.slides_uri}{first}",
            hint="name their folder: slides",
        )
    return found, dropped


_BATCHES_AHEAD = 3
_PATCHES_PER_TASK = 32
_MAX_NAMED = 20

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Bags:
    """Embeddings of all patches in one file on disk, slide after slide.

    Slide `rows[i]` of the dataset has the patches `starts[i]` to `starts[i + 1]` of `features` [N, D].
    """

    features: Features
    starts: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    num_dropped: int
    dropped: tuple[dict[str, str], ...]
    """The first of the slides left out: source and reason."""

    @property
    def num_patches(self) -> int:
        """Over all slides."""
        return int(self.starts[-1])

    def means(self) -> Features:
        """Mean embedding of each slide, float32 [slides, D]."""
        ends = zip(self.starts, self.starts[1:], strict=False)
        return np.stack([self.features[start:end].mean(axis=0) for start, end in ends])

    def merged(self, names: Sequence[str]) -> "Bags":
        """One bag for the neighbours that share a name; of their rows the first stands for it."""
        first = [i for i, name in enumerate(names) if not i or name != names[i - 1]]
        return replace(self, starts=self.starts[[*first, -1]], rows=self.rows[first])


def embed_slides(
    model: JudgedModel, plan: SlidePlan, *, store: Store, folder: Path, batch_size: int, log: RunLog
) -> Bags:
    """Embeddings of every slide of `plan`, from the store where they are there; laid out in `folder`.

    A slide is published whole as soon as it is done, so a killed evaluation goes on with the next one.
    Memory holds the embeddings of two slides. Raises `PermanentError` where no slide gives a patch, or an
    embedding is not finite.
    """
    digest = _digest(model, plan)
    dropped = list(plan.dropped)
    counts: list[int] = []
    rows: list[int] = []
    dim = 0
    with (folder / "features.f32").open("wb") as file:
        embedded = _stored_or_made(store, digest, plan, model, batch_size)
        for done, (place, found) in enumerate(embedded, 1):
            if isinstance(found, str):
                dropped.append({"source": plan.row(place).slide, "reason": found})
            else:
                np.ascontiguousarray(found, dtype=np.float32).tofile(file)
                counts.append(len(found))
                rows.append(place)
                dim = found.shape[1]
            log.progress(done, len(plan.places), "slides", model=model.name)
    if not rows:
        raise PermanentError(
            f"no slide gives a patch; the first, {dropped[0]['source']}: {dropped[0]['reason']}"
        )
    features = np.memmap(folder / "features.f32", np.float32, "r+", shape=(sum(counts), dim))
    return Bags(
        features,
        np.cumsum([0, *counts], dtype=np.int64),
        np.array(rows, dtype=np.int64),
        len(dropped),
        tuple(dropped[:_MAX_NAMED]),
    )


def _digest(model: JudgedModel, plan: SlidePlan) -> str:
    """Of the model and of how patches are drawn; the slide's own digest is part of its key."""
    identity = [
        model.digest, TRANSFORM, TRANSFORM_VERSION, plan.grid.model_dump(mode="json"), plan.num_patches,
        plan.reading.patch_px, plan.reading.decoder, "float32",
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _stored_or_made(
    store: Store, digest: str, plan: SlidePlan, model: JudgedModel, batch_size: int
) -> Iterator[tuple[int, Features | str]]:
    """Embeddings of each slide by its row in the dataset, in order, or why there are none."""
    keys = {
        place: RunLayout.slide_embeddings(digest, plan.row(place).digest) for place in sorted(plan.places)
    }
    there = {info.key for info in store.list(f"{PurePosixPath(next(iter(keys.values()))).parent}/")}
    missing = [place for place, key in keys.items() if key not in there]
    with _Worker(model, plan, batch_size) as worker:
        made = worker.embedded(missing)
        for place, key in keys.items():
            stored = _loaded(store, key) if key in there else None
            if stored is not None:
                yield place, stored
                continue
            # Of two tasks at once, or of a damaged object, the last stands.
            found = next(made) if key not in there else next(worker.embedded([place]))
            if not isinstance(found, str):
                store.put(key, safetensors.numpy.save({"features": found}))
            yield place, found


def _loaded(store: Store, key: str) -> Features | None:
    try:
        return np.asarray(safetensors.numpy.load(store.get(key))["features"])
    except (NotFound, SafetensorError, KeyError):
        return None


class _Worker(Closing):
    """Reads and embeds the patches of slides; opens model and reader when first needed."""

    def __init__(self, model: JudgedModel, plan: SlidePlan, batch_size: int) -> None:
        self._model, self._plan, self._batch_size = model, plan, batch_size
        self._forward: Forward | None = None
        self._reader: GuardedReader | None = None

    def embedded(self, places: Sequence[int]) -> Iterator[Features | str]:
        """[n, D] of the patches of each slide that can be read, or why there are none."""
        if not places:
            return
        if self._forward is None or self._reader is None:
            self._forward = Forward.of(self._model)
            self._reader = open_reader(self._plan.snapshot, self._plan.reading, share_tiles=True)
        slides = in_advance(self._patches_of, places, num_threads=1, num_ahead=1)
        read = partial(read_patches, self._reader, self._forward.img_px)
        for _, found in embed_in_turn(slides, read, ModelClock(self._forward), self._batch_size):
            yield found if isinstance(found, str) else found[0]

    def _patches_of(self, place: int) -> "SlidePatches":
        return SlidePatches(place, self._plan.row(place).slide, self._plan.requests(place))

    def close(self) -> None:
        """End the decoders' processes."""
        if self._reader is not None:
            self._reader.close()


@dataclass(frozen=True)
class SlidePatches:
    """The patches of one slide."""

    place: int
    """Of the slide in what is worked through."""
    slide: str
    patches: Sequence[Any]
    """As `read` of `embed_in_turn` takes them; each says `x_px`, `y_px`, its top-left corner in level-0
    pixels, and `mpp`."""


Read = Callable[[Sequence[Any]], list[Pixels | str]]


class ModelClock:
    """How long a model worked, of the time since the clock was made."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self._began_s, self._busy_s = time.monotonic(), 0.0

    def features(self, pixels: Pixels) -> Features:
        """What the model makes of them."""
        began_s = time.monotonic()
        found = self.forward(pixels)
        self._busy_s += time.monotonic() - began_s
        return found

    def wait_share(self) -> float:
        """Share of the time in which the model had nothing to work on, in [0, 1]."""
        return max(0.0, 1 - self._busy_s / max(time.monotonic() - self._began_s, 1e-9))


def embed_in_turn(
    slides: Iterable[SlidePatches], read: Read, model: ModelClock, batch_size: int
) -> Iterator[tuple[SlidePatches, tuple[Features, list[int]] | str]]:
    """Each slide with the embeddings [n, D] of those of its patches that could be read, and their places.

    Else with why there are none. `read` gives each patch as [img_px, img_px, 3] uint8, or why it cannot be
    read, 32 at a time in threads that are a few tasks ahead: at the end of a slide in the next one. Raises
    `PermanentError` where an embedding is not finite.
    """
    threads = max(2, num_cores())
    tasks = (
        (slide, slide.patches[i : i + _PATCHES_PER_TASK])
        for slide in slides
        for i in range(0, max(1, len(slide.patches)), _PATCHES_PER_TASK)
    )
    patches = in_advance(
        lambda task: (task[0], read(task[1])), tasks, num_threads=threads, num_ahead=_BATCHES_AHEAD * threads
    )

    def features_of(batch: _Batch) -> tuple[_Batch, Features | None]:
        found = model.features(np.stack(batch.pixels)) if batch.pixels else None
        batch.pixels.clear()
        return batch, found

    # A batch is put together while the model works on the one before.
    embedded = in_advance(features_of, _batches(patches, batch_size), num_threads=1, num_ahead=1)
    for _, group in itertools.groupby(embedded, key=lambda each: each[0].slide.place):
        batches = list(group)
        features = [found for _, found in batches if found is not None]
        slide = batches[0][0].slide
        if not features:
            yield slide, batches[-1][0].unreadable
            continue
        found = np.concatenate(features)
        if not np.isfinite(found).all():
            raise PermanentError(
                f"model {model.forward.card.name}: embeddings of {slide.slide} are not finite",
                hint="the checkpoint diverged: look at the loss before it, and judge an earlier one",
            )
        yield slide, (found, [place for batch, _ in batches for place in batch.places])


@dataclass
class _Batch:
    """Patches of one slide that could be read, and their places among its patches; empty where none could."""

    slide: SlidePatches
    places: list[int] = field(default_factory=list)
    pixels: list[Pixels] = field(default_factory=list)
    unreadable: str = "no position on its grid has enough tissue"


def _batches(parts: Iterable[tuple[SlidePatches, list[Pixels | str]]], batch_size: int) -> Iterator[_Batch]:
    """At least one of each slide, the last of it with what is left."""
    for _, group in itertools.groupby(parts, key=lambda part: part[0].place):
        batch, number = None, 0
        for slide, patches in group:
            batch = batch or _Batch(slide)
            for pixels in patches:
                if isinstance(pixels, str):
                    batch.unreadable = f"no patch could be read; the first: {pixels}"
                else:
                    if len(batch.pixels) == batch_size:
                        yield batch
                        batch = _Batch(slide)
                    batch.places.append(number)
                    batch.pixels.append(pixels)
                number += 1
        if batch is not None:
            yield batch


def read_patches(reader: GuardedReader, img_px: int, requests: Sequence[PatchRequest]) -> list[Pixels | str]:
    """Each patch at the model's size [img_px, img_px, 3], or why it cannot be read."""
    return [
        each.message if isinstance(each, SlideError) else fit(Image.fromarray(each), img_px)
        for each in reader.read(requests)
    ]
