"""Estimates of what a configuration would read, from the index alone, before any GPU is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from eosin.config import RunConfig
from eosin.config.patches import PricesConfig
from eosin.index.rows import SlideRow
from eosin.index.snapshot import Snapshot
from eosin.patches.reading.read_plan import ReadPlan, plan_read
from eosin.patches.reading.tables import TileTables
from eosin.patches.request import PatchRequest
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.sets.training_set import check_training_set
from eosin.storage import ByteRange
from eosin.storage.ranged_reads import GAP_BYTES, plan_requests

# A random training patch is drawn so often for the estimate; standard errors are then some 5 %.
_NUM_DRAWS = 256
_DRAWS_STEP = 0
# Neighbouring parts of an object that is brought whole share a request up to this size.
_STAGED_AT_ONCE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class _Cost:
    """What one patch costs on average."""

    tiles: float
    bytes_range: float
    requests_range: float
    bytes_stage: float
    requests_stage: float


def check_patches(config: RunConfig, snapshot: Snapshot) -> dict[str, Any]:
    """Figures of Online Patching: slides, and requests, bytes and cost by range and by stage.

    Estimated from 256 patches of the run's own sequence and the sizes of their tiles. `range` counts rows
    of large tile tables with the tiles. `stage` counts a slide once a visit, as if the pool kept none; a
    pool that holds the whole collection reads it once (`stage_once_bytes`). `…_per_run` is of all steps.
    A patch set to train on is checked and counted instead. Raises `UserError` where no patch could be
    drawn at all.
    """
    if config.patches.source != "slides":
        manifest = check_training_set(config.patches, snapshot)
        return {
            "source": config.patches.source,
            "num_slides": len(manifest.slides),
            "num_patches": manifest.num_patches,
        }
    sampler = Sampler(snapshot, config.patches, seed=config.seed, split="train")
    cost = _average(sampler)
    batch = config.train.batch_size
    slides = [snapshot.rows[int(number)] for number in sampler.slides]
    total = batch * config.train.num_steps
    once = sum(row.size_bytes for row in slides), sum(_requests_of(row) for row in slides)
    return {
        "num_slides": len(sampler.slides),
        "num_slides_excluded": len(sampler.excluded),
        "excluded_slides": sampler.excluded,
        "reader": config.patches.reader,
        "tiles_per_patch": round(cost.tiles, 1),
        "range_bytes_per_step": round(cost.bytes_range * batch),
        "range_requests_per_step": round(cost.requests_range * batch),
        "stage_bytes_per_step": round(cost.bytes_stage * batch),
        "stage_requests_per_step": round(cost.requests_stage * batch),
        "stage_once_bytes": once[0],
        **_of_run("range", config.patches.prices, cost.bytes_range * total, cost.requests_range * total),
        **_of_run("stage", config.patches.prices, cost.bytes_stage * total, cost.requests_stage * total),
        "stage_once_usd": _usd(config.patches.prices, *once),
    }


def _of_run(way: str, prices: PricesConfig, num_bytes: float, num_requests: float) -> dict[str, Any]:
    return {
        f"{way}_bytes_per_run": round(num_bytes),
        f"{way}_requests_per_run": round(num_requests),
        f"{way}_usd_per_run": _usd(prices, num_bytes, num_requests),
    }


def _usd(prices: PricesConfig, num_bytes: float, num_requests: float) -> float:
    usd = prices.usd_per_1000_requests * num_requests / 1e3 + prices.usd_per_gb * num_bytes / 1e9
    return round(usd, 2)


def _average(sampler: Sampler) -> _Cost:
    requests = sampler.draw_batch(_DRAWS_STEP, range(_NUM_DRAWS))
    tables = TileTables(sampler.snapshot)
    rows = sampler.snapshot.rows
    tiled = [request for request in requests if rows[request.slide].header.access == "tiles"]
    read = np.array([_ranges(sampler, tables, request) for request in tiled]).reshape(-1, 3)
    visits = {request.index // sampler.config.patches_per_visit: request.slide for request in requests}
    staged = [rows[slide] for slide in visits.values()]
    return _Cost(
        tiles=float(read[:, 0].sum() / _NUM_DRAWS),
        bytes_range=float(read[:, 1].sum() / _NUM_DRAWS),
        requests_range=float(read[:, 2].sum() / _NUM_DRAWS),
        bytes_stage=sum(row.size_bytes for row in staged) / _NUM_DRAWS,
        requests_stage=sum(_requests_of(row) for row in staged) / _NUM_DRAWS,
    )


def _ranges(sampler: Sampler, tables: TileTables, request: PatchRequest) -> tuple[int, int, int]:
    """Tiles, bytes and requests of one patch, neighbours joined over small gaps as the store joins them."""
    keys = _read_plan(sampler, request).tiles
    places = [place for place in tables.locate(keys) if place.size_bytes]
    wanted = [ByteRange(place.stored.key, place.offset, place.size_bytes) for place in places]
    reads = plan_requests(wanted, gap_bytes=GAP_BYTES)
    reads += plan_requests(tables.rows_read(keys), gap_bytes=GAP_BYTES)
    return len(places), sum(each.end - each.start for each in reads), len(reads)


def _requests_of(row: SlideRow) -> int:
    """Of staging a slide: each object is looked at, then read in stretches."""
    return sum(1 + -(-each.size_bytes // _STAGED_AT_ONCE_BYTES) for each in row.header.objects)


def _read_plan(sampler: Sampler, request: PatchRequest) -> ReadPlan:
    config = sampler.config
    header = sampler.snapshot.rows[request.slide].header
    return plan_read(request, header, config.patch_px, config.mpp_tolerance)
