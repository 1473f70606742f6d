"""The data section: which slides were used, which were not and why, and where the tissue is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eosin.index.reasons import REASONS
from eosin.index.rows import OK, SlideRow
from eosin.index.snapshot import Snapshot
from eosin.index.thumbnails import load_thumbnail

_MAX_NAMED = 40
_MAX_THUMBNAILS = 12
_THUMBNAIL_PX = 240


@dataclass(frozen=True)
class Rejected:
    """All slides left out for one reason; `slides` are the first, each with what was met."""

    status: str
    words: str
    cure: str
    num_slides: int
    slides: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Thumbnail:
    """One slide as a small picture."""

    slide: str
    jpeg: bytes
    """With the outline of the tissue mask drawn in."""
    mpp: float | None
    tissue_mm2: float


@dataclass(frozen=True)
class SlidesView:
    """The slides of a snapshot in numbers, with some thumbnails."""

    snapshot_id: str
    slides_uri: str
    num_slides: int
    num_ok: int
    tissue_mm2: float
    rejected: tuple[Rejected, ...]
    by_mpp: tuple[tuple[str, int], ...]
    """Usable slides by the resolution of their finest level, finest first."""
    by_vendor: tuple[tuple[str, int], ...]
    num_mpp_from_override: int
    num_patients: int
    thumbnails: tuple[Thumbnail, ...]


def view_slides(snapshot: Snapshot) -> SlidesView:
    """Reads the rows and at most twelve thumbnails."""
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
        tissue_mm2=snapshot.manifest.tissue_mm2,
        rejected=tuple(_rejected(status, rows) for status, rows in sorted(rejected.items())),
        by_mpp=tuple((f"{mpp:g}", count) for mpp, count in sorted(mpps.items())),
        by_vendor=tuple(vendors.most_common()),
        num_mpp_from_override=overrides,
        num_patients=len(patients),
        thumbnails=tuple(_thumbnails(snapshot, usable)),
    )


def _rejected(status: str, rows: Sequence[SlideRow]) -> Rejected:
    words, cure = REASONS.get(status, (status.replace("-", " "), ""))
    named = tuple((row.slide, row.detail) for row in rows[:_MAX_NAMED])
    return Rejected(status, words, cure, len(rows), named)


def _thumbnails(snapshot: Snapshot, usable: Sequence[int]) -> Iterable[Thumbnail]:
    stride = max(1, -(-len(usable) // _MAX_THUMBNAILS))
    for i in usable[::stride]:
        row = snapshot.rows[i]
        jpeg = load_thumbnail(snapshot, row, _THUMBNAIL_PX)
        if jpeg:
            yield Thumbnail(row.slide, jpeg, row.header.mpp_x, row.tissue_mm2)
