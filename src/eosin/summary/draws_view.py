"""Draws of training: magnifications, cohorts and slides of a sample of the run's own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.index.snapshot import Snapshot
from eosin.patches.request import PatchRequest
from eosin.patches.sampling.sampler import Sampler

_NUM_DRAWS = 4096
_MAX_BINS = 12
_MAX_COHORTS = 12

Bars = tuple[tuple[str, float], ...]
"""Label and share of the draws."""


@dataclass(frozen=True)
class DrawsView:
    """What training draws from the slides, as a sample of its draws shows."""

    num_draws: int
    by_mpp: Bars
    by_cohort: Bars
    """Most drawn first; empty where no slide has a cohort."""
    num_slides: int
    """Slides that the sample met."""
    most_drawn: tuple[str, float]
    """The slide that gives most patches, and its share."""


def view_draws(config: RunConfig, snapshot: Snapshot) -> DrawsView | None:
    """Draws again what training drew, without reading a pixel.

    None where training reads a patch set instead of slides, or no slide can be drawn from.
    """
    if config.patches.source != "slides":
        return None
    try:
        sampler = Sampler(snapshot, config.patches, seed=config.seed, split="train")
    except UserError:
        return None
    requests = _sample(sampler, config.train.batch_size)
    slides = Counter(request.slide for request in requests)
    row, count = max(slides.items(), key=lambda item: (item[1], -item[0]))
    cohorts = Counter(snapshot.rows[request.slide].cohort for request in requests)
    return DrawsView(
        num_draws=len(requests),
        by_mpp=_by_mpp(config, [request.mpp for request in requests]),
        by_cohort=_shares(cohorts.most_common(_MAX_COHORTS), len(requests)) if set(cohorts) - {""} else (),
        num_slides=len(slides),
        most_drawn=(snapshot.rows[row].slide, count / len(requests)),
    )


def _sample(sampler: Sampler, batch_size: int) -> list[PatchRequest]:
    num_steps = -(-_NUM_DRAWS // batch_size)
    batches = (sampler.draw_batch(step, range(min(batch_size, _NUM_DRAWS))) for step in range(num_steps))
    return [request for batch in batches for request in batch][:_NUM_DRAWS]


def _by_mpp(config: RunConfig, mpps: list[float]) -> Bars:
    if config.patches.mpp_range is None:
        return _shares([(f"{mpp:g}", n) for mpp, n in sorted(Counter(mpps).items())], len(mpps))
    low, high = config.patches.mpp_range
    width = math.log(high / low) / _MAX_BINS
    bins = Counter(min(_MAX_BINS - 1, max(0, int(math.log(mpp / low) / width))) for mpp in mpps)
    edges = [low * math.exp(width * i) for i in range(_MAX_BINS + 1)]
    return _shares([(f"{edges[i]:.2f}–{edges[i + 1]:.2f}", bins[i]) for i in range(_MAX_BINS)], len(mpps))


def _shares(counts: Iterable[tuple[str, int]], total: int) -> Bars:
    return tuple((label or "no cohort", count / total) for label, count in counts)
