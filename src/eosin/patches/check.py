"""What a configuration would read, worked out from the index alone, before any GPU is taken."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from eosin.config import RunConfig
from eosin.index.snapshot import Snapshot
from eosin.patches.reading import Reading, plan_reading
from eosin.patches.request import PatchRequest
from eosin.patches.sampler import Sampler
from eosin.patches.tables import TileTables
from eosin.patches.training_set import check_training_set

# A random training patch is drawn so often for the estimate; standard errors are then some 5 %.
_NUM_DRAWS = 256
_DRAWS_STEP = 0


@dataclass(frozen=True)
class _Cost:
    """What one patch costs on average."""

    tiles: float
    bytes_range: float
    requests_range: float
    bytes_stage: float
    requests_stage: float


def check_patches(config: RunConfig, snapshot: Snapshot) -> dict[str, Any]:
    """Figures of Online Patching: slides, requests and bytes a step by range and by stage.

    Estimated from 256 patches of the run's own sequence and the sizes of their tiles. `stage` counts a
    slide once a visit, as if the pool kept none; a pool that holds the whole collection reads it once
    (`stage_once_bytes`). A patch set to train on is checked and counted instead. Raises `UserError` where
    no patch could be drawn at all.
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
    sizes = [snapshot.rows[int(number)].size_bytes for number in sampler.slides]
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
        "stage_once_bytes": sum(sizes),
    }


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
        requests_stage=sum(len(row.header.objects) for row in staged) / _NUM_DRAWS,
    )


def _ranges(sampler: Sampler, tables: TileTables, request: PatchRequest) -> tuple[int, int, int]:
    """Tiles, bytes and requests of one patch; tiles that touch in their object share a request."""
    places = [place for place in tables.locate(_reading(sampler, request).tiles) if place.size_bytes]
    spans = sorted((place.object, place.offset, place.offset + place.size_bytes) for place in places)
    breaks = sum(a[0] != b[0] or a[2] != b[1] for a, b in itertools.pairwise(spans))
    return len(places), sum(place.size_bytes for place in places), breaks + bool(places)


def _reading(sampler: Sampler, request: PatchRequest) -> Reading:
    config = sampler.config
    header = sampler.snapshot.rows[request.slide].header
    return plan_reading(request, header, config.patch_px, config.mpp_tolerance)
