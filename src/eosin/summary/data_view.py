"""Data of a run: slides used and refused, where their tissue is, and what training draws of them."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from eosin.config import RunConfig
from eosin.config.patches import PatchesConfig
from eosin.errors import UserError
from eosin.index.rows import OK, SlideRow
from eosin.index.sheet import load_thumbnail
from eosin.index.snapshot import Snapshot
from eosin.patches.request import PatchRequest
from eosin.patches.sampling.eligible import find_eligible
from eosin.patches.sampling.sampler import Sampler
from eosin.slides.errors import REASONS

_MAX_NAMED = 40
_MAX_THUMBNAILS = 12
_THUMBNAIL_PX = 240


@dataclass(frozen=True)
class RefusedSlide:
    """A slide, and what was met on it."""

    slide: str
    detail: str


@dataclass(frozen=True)
class Rejected:
    """All slides left out for one reason; `slides` are the first, each with what was met."""

    status: str
    reason: str
    cure: str
    num_slides: int
    slides: tuple[RefusedSlide, ...]


Role = Literal["trained", "held out", "not drawn from", "used"]
"""`used` where training reads a patch set, so that nobody knows."""


@dataclass(frozen=True)
class Thumbnail:
    """One slide as a small picture."""

    slide: str
    jpeg: bytes
    """With the outline of the tissue mask drawn in."""
    mpp: float | None
    tissue_mm2: float
    role: Role


@dataclass(frozen=True)
class SlidesView:
    """The slides of a snapshot in numbers, with some thumbnails."""

    snapshot_id: str
    slides_uri: str
    num_slides: int
    num_ok: int
    """Those that the index found nothing against."""
    roles: dict[Role, int]
    """How many of those trained, were held out, or were neither."""
    tissue_mm2: float
    rejected: tuple[Rejected, ...]
    by_mpp: tuple[tuple[str, int], ...]
    """Usable slides by the resolution of their finest level, finest first."""
    by_vendor: tuple[tuple[str, int], ...]
    num_mpp_from_override: int
    num_patients: int
    attribution: tuple[str, ...]
    """Whose the slides are: lines that can be copied."""
    thumbnails: tuple[Thumbnail, ...]


def view_slides(snapshot: Snapshot, config: PatchesConfig) -> SlidesView:
    """Reads the rows and at most twelve thumbnails; `config` says which slides trained."""
    role_of = _roles(snapshot, config)
    usable: list[int] = []
    rejected: dict[str, list[SlideRow]] = defaultdict(list)
    mpps, vendors, patients, overrides = Counter[float](), Counter[str](), set[str](), 0
    for i, row in enumerate(snapshot.rows):
        if row.status != OK:
            rejected[row.status].append(row)
            continue
        usable.append(i)
        mpps[round(row.header.mpp_x or 0.0, 2)] += 1
        vendors[row.header.vendor or row.header.format] += 1
        patients |= {row.patient} - {""}
        overrides += row.mpp_source == "override"
    return SlidesView(
        snapshot_id=snapshot.manifest.snapshot_id,
        slides_uri=snapshot.slides_uri,
        num_slides=len(snapshot.rows),
        num_ok=len(usable),
        roles={role: count for role in get_args(Role) if (count := sum(role_of(i) == role for i in usable))},
        tissue_mm2=snapshot.manifest.tissue_mm2,
        rejected=tuple(_rejected(status, rows) for status, rows in sorted(rejected.items())),
        by_mpp=tuple((f"{mpp:g}", count) for mpp, count in sorted(mpps.items())),
        by_vendor=tuple(vendors.most_common()),
        num_mpp_from_override=overrides,
        num_patients=len(patients),
        attribution=snapshot.manifest.attribution,
        thumbnails=tuple(_thumbnails(snapshot, usable, role_of)),
    )


def _rejected(status: str, rows: Sequence[SlideRow]) -> Rejected:
    words, cure = REASONS.get(status, (status.replace("-", " "), ""))
    named = tuple(RefusedSlide(row.slide, row.detail) for row in rows[:_MAX_NAMED])
    return Rejected(status, words, cure, len(rows), named)


def _roles(snapshot: Snapshot, config: PatchesConfig) -> Callable[[int], Role]:
    """Of a row of the snapshot, as training and `heldout` drew them."""
    if config.source != "slides":
        return lambda _: "used"
    rows: dict[str, frozenset[int]] = {}
    for split in ("train", "heldout"):
        try:
            rows[split] = frozenset(find_eligible(snapshot, config, split).rows.tolist())
        except UserError:  # none that serve, or nothing that could be held out
            rows[split] = frozenset()
    return lambda i: (
        "trained" if i in rows["train"] else "held out" if i in rows["heldout"] else "not drawn from"
    )


def _thumbnails(
    snapshot: Snapshot, usable: Sequence[int], role_of: Callable[[int], Role]
) -> Iterable[Thumbnail]:
    stride = max(1, -(-len(usable) // _MAX_THUMBNAILS))
    for i in usable[::stride]:
        row = snapshot.rows[i]
        jpeg = load_thumbnail(snapshot, row, _THUMBNAIL_PX)
        if jpeg:
            yield Thumbnail(row.slide, jpeg, row.header.mpp_x, row.tissue_mm2, role_of(i))


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
