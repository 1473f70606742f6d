"""Inspection of an index: what it holds, and what is wrong with which slide, for a person or as JSON."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from eosin.errors import UserError
from eosin.index.columns import MappedRows
from eosin.index.snapshot import Snapshot, open_snapshot
from eosin.index.split import copies
from eosin.slides.errors import cure_of
from eosin.slides.model import Level
from eosin.words import counted, size_text

_MPPS = (0.25, 0.5, 1.0, 2.0)
_PATCH_PX = 256
_MPP_TOLERANCE = 0.1
_PROBLEMS_SHOWN = 50
_NAMES_SHOWN = 4


@dataclass(frozen=True)
class SlideProblem:
    """A slide that is not used, or of which something must be known."""

    slide: str
    status: str
    detail: str
    cure: str
    """What its owner can do; empty where nothing is known, or nothing is wrong."""
    folder: str
    """URI of the folder it lies in."""


@dataclass(frozen=True)
class Inspection:
    """A snapshot in numbers; counts by vendor, mpp and compression are of the usable slides."""

    index_uri: str
    snapshot_id: str
    slides_uri: str
    num_slides: int
    num_ok: int
    num_verified: int
    """Slides, one of each vendor and layout, whose picture was held against another reader's."""
    num_not_slides: int
    """Objects in the folder that are no slides: pictures, texts and the like."""
    size_bytes: int
    tissue_mm2: float
    statuses: dict[str, int]
    vendors: dict[str, int]
    mpps: dict[str, int]
    compressions: dict[str, int]
    patches: dict[str, int]
    """Patches of 256 px that fit the tissue side by side, by mpp."""
    mpp_sources: dict[str, int]
    num_contours: int
    """Slides whose mask was drawn from contours."""
    cohorts: dict[str, int]
    num_patients: int
    copies: tuple[tuple[str, ...], ...]
    """Slides that show the same under several names; they are kept on one side of the held-out split."""
    attribution: tuple[str, ...]
    """Whose the slides are: lines that can be copied."""
    problems: tuple[SlideProblem, ...]

    def __str__(self) -> str:
        lines = [
            f"index      {self.index_uri}",
            f"snapshot   {self.snapshot_id} of {self.slides_uri}",
            f"slides     {self.num_slides}, {self.num_ok} usable, {size_text(self.size_bytes)}",
            *self._others(),
            f"tissue     {self.tissue_mm2:.4g} mm²",
            *(f"{name:<10} {_counts(counts)}" for name, counts in (
                ("status", self.statuses), ("vendor", self.vendors), ("mpp", self.mpps),
                ("mpp from", self.mpp_sources), ("tiles", self.compressions),
                ("patches", _by_mpp(self.patches)), *self._people(),
            )),
        ]  # fmt: skip
        lines += [f"slides of  {line}" for line in self.attribution]
        lines += [
            f"  {_some(group)}: the same slide; kept on one side of the held-out split"
            for group in self.copies[:_PROBLEMS_SHOWN]
        ]
        if len(self.copies) > _PROBLEMS_SHOWN:
            lines.append(f"  … and {counted(len(self.copies) - _PROBLEMS_SHOWN, 'more slide')} with copies")
        shown = self.problems[:_PROBLEMS_SHOWN]
        lines += [
            f"  {each.slide}: {each.status}: {each.detail}"
            + (f" → {each.cure}" if each.cure else "")
            + f"  ({each.folder})"
            for each in shown
        ]
        if len(shown) < len(self.problems):
            lines.append(f"  … and {len(self.problems) - len(shown)} more; --json lists all")
        return "\n".join(lines)

    def _others(self) -> list[str]:
        num, checked = self.num_not_slides, self.num_verified
        return [
            *([f"others     {counted(num, 'object')} without a slide"] if num else []),
            *([f"checked    {checked} against another reader, one a vendor and layout"] if checked else []),
            *(
                [f"contours   of {counted(self.num_contours, 'slide')} drawn by hand"]
                if self.num_contours
                else []
            ),
        ]

    def _people(self) -> tuple[tuple[str, dict[str, int]], ...]:
        """Patients and cohorts, where the overrides name any."""
        patients = {"known": self.num_patients} if self.num_patients else {}
        return tuple(each for each in (("patients", patients), ("cohort", self.cohorts)) if each[1])


@dataclass(frozen=True)
class SlideInspection:
    """Everything a person may ask of one slide."""

    slide: str
    status: str
    detail: str
    objects: tuple[str, ...]
    size_bytes: int
    vendor: str
    format: str
    access: str
    mpp_x: float | None
    mpp_y: float | None
    mpp_source: str
    levels: tuple[str, ...]
    tissue_mm2: float
    tissue_share: float | None
    """Of the slide's area."""
    mask: str
    """contours, or detected; empty where there is none."""
    contours: str
    """URI of the GeoJSON that the mask was drawn from."""
    patches: dict[str, int]
    patient: str
    cohort: str
    labels: dict[str, str]
    extra: dict[str, str]
    uri: str

    def __str__(self) -> str:
        mpp = f"{self.mpp_x:g} × {self.mpp_y:g} ({self.mpp_source})" if self.mpp_x else "unknown"
        share = "" if self.tissue_share is None else f" ({self.tissue_share:.0%} of the slide)"
        known = {"patient": self.patient, "cohort": self.cohort, **self.labels, **self.extra}
        lines = [
            f"slide      {self.slide} ({size_text(self.size_bytes)} in "
            f"{counted(len(self.objects), 'object')})",
            f"at         {self.uri}",
            f"status     {self.status}" + (f": {self.detail}" if self.detail else ""),
            *([f"cure       {cure_of(self.status)}"] if cure_of(self.status) else []),
            f"format     {self.format} by {self.vendor}, read as {self.access}"
            if self.vendor
            else "format     ?",
            f"mpp        {mpp}",
            *(f"level {i}    {text}" for i, text in enumerate(self.levels)),
            f"tissue     {self.tissue_mm2:.4g} mm²{share}",
            *([f"mask       {self.mask}" + f", {self.contours}" * bool(self.contours)] if self.mask else []),
            f"patches    {_counts(_by_mpp(self.patches))}",
            *(f"{name:<10} {value}" for name, value in known.items() if value),
        ]
        return "\n".join(lines)


def inspect_index(
    uri: str, slide: str | None = None, snapshot_id: str | None = None
) -> Inspection | SlideInspection:
    """A snapshot of the index at `uri` (None: its newest), or one slide of it by key or file name.

    Raises `UserError` where there is no index, or no such slide (or several).
    """
    snapshot = open_snapshot(uri, snapshot_id)
    if slide is None:
        return _inspect(uri, snapshot)
    return _inspect_slide(snapshot.rows, _find(snapshot.rows, slide, uri))


def possible_patches(slides: npt.NDArray[np.void]) -> dict[str, int]:
    """Patches of 256 px side by side on the tissue of usable slides fine enough, by mpp.

    `slides`: of the table of a snapshot's rows, [n].
    """
    finest = np.maximum(slides["mpp_x"], slides["mpp_y"])
    found = {}
    for mpp in _MPPS:
        fine = slides["ok"] & (finest <= mpp * (1 + _MPP_TOLERANCE))
        found[f"{mpp:g}"] = int((slides["tissue_mm2"][fine] // (_PATCH_PX * mpp / 1e3) ** 2).sum())
    return found


def _inspect(uri: str, snapshot: Snapshot) -> Inspection:
    """Column by column, so that memory is that of a few columns and of the problems."""
    rows, usable = snapshot.rows, snapshot.usable
    table = rows.table  # of which one column at a time is copied
    mpps = Counter(zip(*(table[name][usable].tolist() for name in ("mpp_x", "mpp_y")), strict=True))
    odd = np.flatnonzero(~table["ok"] | (table["detail"]["size"] > 0))
    columns = (rows.texts(name, odd) for name in ("slide", "status", "detail", "uri"))
    return Inspection(
        index_uri=uri,
        snapshot_id=snapshot.manifest.snapshot_id,
        slides_uri=snapshot.slides_uri,
        num_slides=len(rows),
        num_ok=len(usable),
        num_verified=snapshot.manifest.num_verified,
        num_not_slides=snapshot.manifest.num_not_slides,
        size_bytes=rows.size_bytes,
        tissue_mm2=snapshot.manifest.tissue_mm2,
        statuses=_by_count(rows.texts("status")),
        vendors=_by_count(rows.texts("vendor", usable)),
        mpps=_by_count(mpp for pair, number in mpps.items() for mpp in [_mpp_of(*pair)] * number),
        compressions=_by_count(rows.compressions(usable)),
        patches=possible_patches(table),
        mpp_sources=_by_count(rows.texts("mpp_source", usable)),
        num_contours=int((table["contours"]["size"][usable] > 0).sum()),
        cohorts=_by_count(filter(None, rows.texts("cohort", usable))),
        num_patients=len(set(rows.arrow("patient", usable).unique().to_pylist()) - {""}),
        copies=tuple(copies(rows, usable)),
        attribution=snapshot.manifest.attribution,
        problems=tuple(SlideProblem(slide, status, detail, cure_of(status), slide_uri.rpartition("/")[0])
                       for slide, status, detail, slide_uri in zip(*columns, strict=True)),
    )  # fmt: skip


def _inspect_slide(rows: MappedRows, number: int) -> SlideInspection:
    row = rows.alone(number)
    header, patches = row.header, possible_patches(rows.table[number : number + 1])
    mask = "" if row.tissue is None else "contours" if row.contours else "detected"
    finest = header.levels[0] if header.levels else None
    share = row.tissue.area / (finest.width_px * finest.height_px) if row.tissue and finest else None
    return SlideInspection(
        slide=row.slide, status=row.status, detail=row.detail,
        objects=tuple(each.key for each in header.objects), size_bytes=row.size_bytes,
        vendor=header.vendor, format=header.format, access=header.access,
        mpp_x=header.mpp_x, mpp_y=header.mpp_y, mpp_source=row.mpp_source,
        levels=tuple(_level(each, header.access) for each in header.levels),
        tissue_mm2=row.tissue_mm2, tissue_share=share, mask=mask, contours=row.contours, patches=patches,
        patient=row.patient, cohort=row.cohort, labels=row.labels, extra=row.extra, uri=row.uri,
    )  # fmt: skip


def _mpp_of(mpp_x: float, mpp_y: float) -> str:
    x, y = f"{mpp_x:.3g}", f"{mpp_y:.3g}"
    return x if x == y else f"{x} × {y}"


def _level(level: Level, access: str) -> str:
    size = f"{level.width_px} × {level.height_px} px, 1/{level.downsample:g}"
    if access == "local":
        return f"{size}, by OpenSlide from a staged copy"
    tiles = (
        f"{level.compression} {level.color_space} tiles of {level.tile_width_px} × {level.tile_height_px} px"
    )
    return f"{size}, {tiles}"


def _by_mpp(patches: dict[str, int]) -> dict[str, int]:
    return {f"{mpp} mpp": number for mpp, number in patches.items()}


def _find(rows: MappedRows, slide: str, uri: str) -> int:
    exact = rows.find(slide)
    if exact is not None:
        return exact
    found = [i for i, key in enumerate(rows.column("slide")) if PurePosixPath(key).name == slide]
    if len(found) == 1:
        return found[0]
    problem = f"{len(found)} slides are named {slide}" if found else f"there is no slide {slide}"
    raise UserError(f"{problem} in {uri}", hint="name it by its key, as `eosin index inspect` prints it")


def _by_count(values: Iterable[str]) -> dict[str, int]:
    counts = Counter(values)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _some(names: tuple[str, ...]) -> str:
    more = f" = … {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return " = ".join(names[:_NAMES_SHOWN]) + more


def _counts(counts: dict[str, int]) -> str:
    return " · ".join(f"{name} {number:,}" for name, number in counts.items()) or "none"
