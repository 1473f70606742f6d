"""Eligible slides: which can be drawn from, at which magnifications, and why others cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import numpy.typing as npt

from eosin.config.patches import PatchesConfig
from eosin.errors import UserError
from eosin.index.rows import OK, SlideRow
from eosin.index.snapshot import Snapshot
from eosin.index.split import hash_unit, patient_of, split_patients
from eosin.patches.geometry import best_level, extent_px, fits, level_mpp
from eosin.patches.sampling.cohorts import of_weighted_cohorts, share_out
from eosin.patches.sampling.counter_rng import Float64
from eosin.patches.sampling.magnification import (
    ContinuousMagnifications,
    DiscreteMagnifications,
    Magnifications,
)

Split = Literal["train", "heldout", "all"]

_NAMED_AT_MOST = 30
_NAMED_FOR_PATTERN = 5
# Of each slide that serves, which of the wanted mpps it offers (1 or 0), or the finest and coarsest mpp.
_Offers = dict[int, Float64]


@dataclass(frozen=True)
class Eligible:
    """Slides to draw from, as arrays, so that 30,000 of them cost a few MB."""

    rows: npt.NDArray[np.int64]
    """Rows of the snapshot, [n]."""
    excluded: dict[str, str]
    slide_cumulative: Float64
    """Cumulative weights of the slides, ending at 1, [n]."""
    magnifications: Magnifications

    def pick(self, uniform: float) -> int:
        """The slide (a position in `rows`) at `uniform` in [0, 1)."""
        return int(np.searchsorted(self.slide_cumulative, uniform, side="right"))


def find_eligible(
    snapshot: Snapshot, config: PatchesConfig, split: Split, patterns: Sequence[str] = ("*",)
) -> Eligible:
    """The slides of `split`, and of their keys' `patterns`, that offer at least one wanted mpp.

    Patients are split among the slides that serve, so that neither side is empty where two patients
    have such slides. Raises `UserError` naming slides with their reasons where no slide is left, or a
    pattern that matches none.
    """
    offers: _Offers = {}
    excluded: dict[str, str] = {}
    look = _offer_among if config.mpp_range is None else _offer_between
    for number, row in enumerate(snapshot.rows):
        offer = look(row, config)
        if isinstance(offer, str):
            excluded[row.slide] = offer
        else:
            offers[number] = offer
    if not offers:
        raise _nothing(snapshot, excluded)
    by_cohort = config.cohort_weights if split == "train" else None
    members = _of_split(snapshot, config, offers, split)
    numbers = np.array(list(members), dtype=np.int64)
    kept = set(matching(snapshot, numbers, patterns, excluded).tolist())
    members = {number: offer for number, offer in members.items() if number in kept}
    return _weigh(snapshot, config, members, excluded, by_cohort)


def matching(
    snapshot: Snapshot, rows: npt.NDArray[np.int64], patterns: Sequence[str], excluded: Mapping[str, str]
) -> npt.NDArray[np.int64]:
    """Those of `rows` whose slide's key matches a pattern.

    Raises `UserError` for one that matches none, with the reason of a slide of `excluded` that it matches.
    """
    if tuple(patterns) == ("*",) and len(rows):
        return rows
    names = [snapshot.rows[int(number)].slide for number in rows]
    matches = {pattern: [fnmatchcase(name, pattern) for name in names] for pattern in patterns}
    for pattern, found in matches.items():
        if not any(found):
            raise _no_match(pattern, len(names), excluded)
    return rows[np.any(list(matches.values()), axis=0)]


def _no_match(pattern: str, num_slides: int, excluded: Mapping[str, str]) -> UserError:
    meant = [slide for slide in excluded if fnmatchcase(slide, pattern)]
    why = "".join(f"\n  {slide}: {excluded[slide]}" for slide in meant[:_NAMED_FOR_PATTERN])
    more = f"\n  … and {len(meant) - _NAMED_FOR_PATTERN} more" if len(meant) > _NAMED_FOR_PATTERN else ""
    return UserError(
        f"{pattern!r} matches none of the {num_slides} slides that serve"
        + (f"; it matches {len(meant)} that do not:{why}{more}" if meant else ""),
        hint="see `eosin index inspect`; `*` stands for any part of a slide's key",
    )


def _of_split(snapshot: Snapshot, config: PatchesConfig, offers: _Offers, split: Split) -> _Offers:
    if split == "all":
        return offers
    patients = {number: patient_of(snapshot.rows[number]) for number in offers}
    held_out = split_patients((snapshot.rows[number] for number in offers), config.heldout.fraction)
    if split == "heldout" and not held_out:
        reason = "patches.heldout.fraction is 0" if config.heldout.fraction == 0 else "they are one patient's"
        raise UserError(
            f"no slide can be held out of the {len(offers)} that serve: {reason}",
            hint="give patients in a CSV (slides.overrides), or more slides",
        )
    wanted = split == "heldout"
    members = {number: offer for number, offer in offers.items() if (patients[number] in held_out) == wanted}
    return members if wanted else _subset(snapshot, config, _of_cohorts(snapshot, config, members))


def _of_cohorts(snapshot: Snapshot, config: PatchesConfig, offers: _Offers) -> _Offers:
    if config.cohort_weights is None:
        return offers
    return {number: offers[number] for number in of_weighted_cohorts(snapshot, config.cohort_weights, offers)}


def _subset(snapshot: Snapshot, config: PatchesConfig, offers: _Offers) -> _Offers:
    """The share `config.slide_fraction` of the slides, at least one; by hash, so that shares are nested."""
    num_kept = math.ceil(config.slide_fraction * len(offers) - 1e-9)
    order = sorted(offers, key=lambda number: hash_unit(f"subset:{snapshot.rows[number].slide}"))
    kept = set(order[:num_kept])
    return {number: offer for number, offer in offers.items() if number in kept}


def _weigh(
    snapshot: Snapshot,
    config: PatchesConfig,
    offers: _Offers,
    excluded: dict[str, str],
    cohort_weights: Mapping[str, float] | None,
) -> Eligible:
    by_area = config.weighting == "area"
    weights = np.array([snapshot.rows[number].tissue_mm2 if by_area else 1.0 for number in offers])
    if cohort_weights is not None:
        weights = share_out(snapshot, cohort_weights, offers, weights)
    offered = np.array(list(offers.values()))
    return Eligible(
        rows=np.array(list(offers), dtype=np.int64),
        excluded=excluded,
        slide_cumulative=_cumulative(weights),
        magnifications=_magnifications(config, offered),
    )


def _magnifications(config: PatchesConfig, offered: Float64) -> Magnifications:
    if config.mpp_range is not None:
        return ContinuousMagnifications(offered)
    wanted = np.array(config.mpp_weights or [1.0] * len(config.mpp))
    return DiscreteMagnifications(config.mpp, _cumulative(offered * wanted))


def _cumulative(weights: Float64) -> Float64:
    """Running shares along the last axis; from the last weight above 0 on exactly 1."""
    sums = np.cumsum(weights, axis=-1)
    return np.asarray(sums / sums[..., -1:])


def _offer_among(row: SlideRow, config: PatchesConfig) -> Float64 | str:
    """1 for each of `config.mpp` that `row` offers and 0 for the others, or why it offers none."""
    reasons = [_refusal(row, config, mpp) for mpp in config.mpp]
    return _nearest(reasons) if all(reasons) else np.array([float(not reason) for reason in reasons])


def _offer_between(row: SlideRow, config: PatchesConfig) -> Float64 | str:
    """Finest and coarsest mpp that `row` offers of `config.mpp_range`, or why it offers none."""
    assert config.mpp_range is not None
    finest, coarsest = config.mpp_range
    if row.status == OK:
        finest = max(finest, level_mpp(row.header, 0) / (1.0 + config.mpp_tolerance))
    reason = _refusal(row, config, min(finest, coarsest))
    if reason:
        return reason
    return np.array([finest, max(finest, min(coarsest, _coarsest_mpp(row, config)))])


def _coarsest_mpp(row: SlideRow, config: PatchesConfig) -> float:
    """The mpp at which a patch fills the slide, or its least tissue is all there is, whichever is finer."""
    header = row.header
    assert header.mpp_x is not None and header.mpp_y is not None
    finest = header.levels[0]
    width_um, height_um = finest.width_px * header.mpp_x, finest.height_px * header.mpp_y
    tissue_um = math.inf
    if config.min_foreground > 0:
        tissue_um = 1000.0 * math.sqrt(row.tissue_mm2 / config.min_foreground)
    return min(width_um, height_um, tissue_um) * (1.0 - 1e-9) / config.patch_px


def _refusal(row: SlideRow, config: PatchesConfig, mpp: float) -> str:
    """Why `row` gives no patch at `mpp`; empty where it does."""
    header = row.header
    if row.status != OK:
        return f"{row.status}: {row.detail}" if row.detail else row.status
    if best_level(header, mpp, config.mpp_tolerance) is None:
        return f"too-coarse: finest level {level_mpp(header, 0):.4g} mpp, wanted ≤ {max(config.shown_mpp):g}"
    if not fits(header, config.patch_px, mpp):
        need = max(extent_px(header, config.patch_px, mpp))
        size = f"{header.levels[0].width_px} × {header.levels[0].height_px} px"
        return f"too-small: {size}, a patch of {config.patch_px} px at {mpp:g} mpp needs {need:.0f} px"
    if row.tissue is None or row.tissue_mm2 <= 0:
        return "no-tissue: its mask is empty"
    need_mm2 = config.min_foreground * (config.patch_px * mpp / 1000) ** 2
    if row.tissue_mm2 < need_mm2:
        return f"too-little-tissue: {row.tissue_mm2:.3g} mm², a patch at {mpp:g} mpp needs {need_mm2:.3g} mm²"
    return ""


def _nearest(reasons: list[str]) -> str:
    """Of one reason for each mpp, the one that the slide came furthest with."""
    return max(reasons, key=lambda reason: _PROGRESS.get(reason.partition(":")[0], 0))


_PROGRESS = {"too-coarse": 1, "too-small": 2, "no-tissue": 3, "too-little-tissue": 4}


def _nothing(snapshot: Snapshot, excluded: dict[str, str]) -> UserError:
    lines = [f"{slide}: {reason}" for slide, reason in list(excluded.items())[:_NAMED_AT_MOST]]
    if len(excluded) > _NAMED_AT_MOST:
        lines.append(f"… and {len(excluded) - _NAMED_AT_MOST} more")
    return UserError(
        f"no patch can be drawn: none of the {len(excluded)} slides in {snapshot.slides_uri} serves"
        + "".join(f"\n  {line}" for line in lines),
        hint="change patches.mpp or patches.patch_px, or give mpp in a CSV: slides.overrides",
    )
