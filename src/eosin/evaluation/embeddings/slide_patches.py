"""Patches of labelled slides: an index of the slides, a grid over their tissue, a stable draw."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from eosin.config import RunConfig
from eosin.config.index import IndexConfig, TissueConfig
from eosin.config.patches import GridConfig, PatchesConfig
from eosin.config.slides import SlidesConfig
from eosin.errors import UserError
from eosin.evaluation.datasets.slide_dataset import SlideDataset
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
from eosin.storage import join_uri, open_store

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
    slides = SlidesConfig(
        uri=dataset.slides_uri, overrides=overrides, include=tuple(_literal(key) for key in keys)
    )
    return config.model_copy(update={"index": index, "slides": slides})


def _literal(key: str) -> str:
    """A pattern that matches `key` alone."""
    return "".join(f"[{each}]" if each in "*?[" else each for each in key)


def _find_keys(dataset: SlideDataset) -> tuple[dict[int, str], list[dict[str, str]]]:
    """Key of each labelled slide: named by its key, its file name, or that without its ending."""
    by_name = defaultdict(set)
    for key in _keys(dataset.slides_uri):
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
    if not found:
        first = f"; the first, {dropped[0]['source']}: {dropped[0]['reason']}" if dropped else ""
        raise UserError(
            f"none of the {len(dataset.samples)} slides of {dataset.uri} is at {dataset.slides_uri}{first}",
            hint="name their folder: slides",
        )
    return found, dropped


def _keys(uri: str) -> Iterator[str]:
    return (info.key for info in open_store(uri).list())
