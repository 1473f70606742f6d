"""Estimates of what a configuration would read, from the index alone, before any GPU is taken."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eosin.config import RunConfig
from eosin.config.patches import GridConfig, PatchesConfig, PricesConfig
from eosin.index.rows import SlideRow
from eosin.index.snapshot import Snapshot
from eosin.patches.reading.read_plan import ReadPlan, TileKey, plan_read
from eosin.patches.reading.tables import TileTables
from eosin.patches.request import PatchRequest
from eosin.patches.sampling.grid import GridPlan, plan_grid
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.sets.decode import held_out_sampler, sampled_sampler
from eosin.patches.sets.set_spec import Decoding, pin_set
from eosin.patches.sets.training_set import check_training_set
from eosin.storage import ByteRange
from eosin.storage.ranged_reads import GAP_BYTES, plan_requests

# A random training patch is drawn so often for the estimate; standard errors are then some 5 %.
_NUM_DRAWS = 256
_DRAWS_STEP = 0
# Of a grid's slides these many are looked at, spread evenly, and of each these many of its patches.
_GRID_SLIDES, _GRID_PATCHES = 64, 512
# Patches of a grid that are read together.
_GRID_AT_ONCE = 16
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


def check_decoding(job: Decoding) -> dict[str, Any]:
    """Figures of what decoding all of the set would read; publishes nothing. Raises as decoding does."""
    if job.spec is None:
        sampler, _ = held_out_sampler(job.snapshot, job.config, job.name)
        return check_drawn(sampler, job.config.patches.heldout.num_patches)
    pin_set(job, publish=False)
    if isinstance(job.spec, GridConfig):
        return check_grid_plan(plan_grid(job.snapshot, job.config.patches, job.spec))
    return check_drawn(sampled_sampler(job, job.spec), job.spec.num_patches)


def check_drawn(sampler: Sampler, num_patches: int) -> dict[str, Any]:
    """Figures of drawing `num_patches` once, estimated from 256 of them."""
    cost = _average(sampler)
    staged = sampler.config.reader == "stage"
    return _figures_of_reading(
        sampler.config, len(sampler.slides), num_patches,
        num_patches * (cost.bytes_stage if staged else cost.bytes_range),
        num_patches * (cost.requests_stage if staged else cost.requests_range),
    )  # fmt: skip


def check_grid_plan(plan: GridPlan) -> dict[str, Any]:
    """Figures of reading a grid, each tile once; patches and reads of more than 64 slides are estimated."""
    rows, tables = plan.snapshot.rows, TileTables(plan.snapshot)
    seen = range(0, len(plan.slides), -(-len(plan.slides) // _GRID_SLIDES))
    num_patches, num_bytes, num_requests = 0, 0.0, 0.0
    for place in seen:
        row, requests = rows[int(plan.slides[place])], plan.slide(place)
        num_patches += len(requests)
        if not requests:
            continue
        if plan.patches.reader == "stage" or row.header.access == "local":
            num_bytes += row.size_bytes
            num_requests += _requests_of(row)
            continue
        read, known = np.zeros(2), set[TileKey]()
        some = requests[:_GRID_PATCHES]
        for at in range(0, len(some), _GRID_AT_ONCE):
            plans = (plan_read(each, row.header, plan.patches.patch_px, plan.patches.mpp_tolerance)
                     for each in some[at : at + _GRID_AT_ONCE])  # fmt: skip
            keys = dict.fromkeys(key for each in plans for key in each.tiles if key not in known)
            known |= keys.keys()
            read += _ranges(tables, list(keys))[1:]
        num_bytes, num_requests = np.array([num_bytes, num_requests]) + read * (len(requests) / len(some))
    share = len(plan.slides) / len(seen)
    return _figures_of_reading(
        plan.patches, len(plan.slides), num_patches * share, num_bytes * share, num_requests * share
    )


def _figures_of_reading(
    config: PatchesConfig, num_slides: int, num_patches: float, num_bytes: float, num_requests: float
) -> dict[str, Any]:
    return {
        "num_slides": num_slides, "num_patches": round(num_patches), "reader": config.reader,
        "read_bytes": round(num_bytes), "read_requests": round(num_requests),
        "read_usd": _usd(config.prices, num_bytes, num_requests),
    }  # fmt: skip


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
    read = np.array([_ranges(tables, _read_plan(sampler, request).tiles) for request in tiled]).reshape(-1, 3)
    visits = {request.index // sampler.config.patches_per_visit: request.slide for request in requests}
    staged = [rows[slide] for slide in visits.values()]
    return _Cost(
        tiles=float(read[:, 0].sum() / _NUM_DRAWS),
        bytes_range=float(read[:, 1].sum() / _NUM_DRAWS),
        requests_range=float(read[:, 2].sum() / _NUM_DRAWS),
        bytes_stage=sum(row.size_bytes for row in staged) / _NUM_DRAWS,
        requests_stage=sum(_requests_of(row) for row in staged) / _NUM_DRAWS,
    )


def _ranges(tables: TileTables, keys: Sequence[TileKey]) -> tuple[int, int, int]:
    """Tiles, bytes and requests of what is read together, neighbours joined as the store joins them."""
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
