"""Eligible slides: which can be drawn from, how often, at which magnifications, and why others cannot."""

import hashlib
import json
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase, translate
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from numpy.lib.recfunctions import repack_fields

from eosin.config.patches import PatchesConfig
from eosin.errors import UserError
from eosin.index.columns import FORM, made_once
from eosin.index.rows import OK, SlideRow
from eosin.index.snapshot import Snapshot
from eosin.index.split import hash_unit, held_out_rows
from eosin.patches.geometry import ROUNDING, best_level, extent_px, fits, level_mpp
from eosin.patches.sampling.counter_rng import Float64
from eosin.words import first_of

# A step of the continuous draw: logarithms differ in the last bit between machines, what is drawn must not.
_DECIMALS = 6


class Magnifications(Protocol):
    """The magnifications that each slide offers."""

    def pick(self, slide: int, uniform: float) -> float:
        """The mpp at `uniform` in [0, 1) on a slide (a position in `Eligible.rows`)."""
        ...


@dataclass(frozen=True)
class DiscreteMagnifications:
    """A choice of the wanted values, by weight, among those that the slide offers."""

    values: tuple[float, ...]
    cumulative: Float64
    """Cumulative weights of `values` on each slide, ending at 1; flat where it lacks one, [n, k]."""

    def pick(self, slide: int, uniform: float) -> float:
        """As `Magnifications`."""
        return self.values[bisect_right(self.cumulative[slide].tolist(), uniform)]


@dataclass(frozen=True)
class ContinuousMagnifications:
    """Uniform in log mpp over what the slide offers of the wanted range, so that no scale is between two."""

    bounds: npt.NDArray[np.float64]
    """Finest and coarsest mpp of each slide, [n, 2]."""

    def pick(self, slide: int, uniform: float) -> float:
        """As `Magnifications`."""
        finest, coarsest = (float(bound) for bound in self.bounds[slide])
        drawn = round(finest * math.exp(uniform * math.log(coarsest / finest)), _DECIMALS)
        return min(max(drawn, finest), coarsest)


_NAMED_AT_MOST = 30


def of_weighted_cohorts(
    all_cohorts: Iterable[str], cohort_weights: Mapping[str, float], cohorts: Sequence[str]
) -> npt.NDArray[np.bool_]:
    """Which slides (of `cohorts`) have a cohort with a weight above 0. `all_cohorts`: of the snapshot.

    Raises `UserError` naming a cohort that the snapshot does not have, with those it has, and one with a
    weight but none of the slides.
    """
    _refuse_unknown(all_cohorts, cohort_weights)
    kept = np.array([cohort_weights.get(name, 0.0) > 0 for name in cohorts], bool)
    present = set(cohorts)
    for name, weight in cohort_weights.items():
        if weight > 0 and name not in present:
            raise UserError(
                f"patches.cohort_weights: no slide of cohort {name!r} can be trained on: those it has are "
                "held out, or offer no wanted mpp",
                hint=f"give {name!r} the weight 0, or see `eosin index inspect`",
            )
    return kept


def share_out(
    cohorts: npt.NDArray[np.object_], cohort_weights: Mapping[str, float], weights: Float64
) -> Float64:
    """`weights` [n] of slides of `cohorts` [n], scaled so that each cohort's sum is its weight.

    The share of a cohort that has none of them falls to the others, in proportion.
    """
    shared = np.zeros(len(weights))
    for name in dict.fromkeys(cohorts):
        members = cohorts == name
        shared[members] = weights[members] * (cohort_weights[name] / weights[members].sum())
    return shared


def _refuse_unknown(all_cohorts: Iterable[str], cohort_weights: Mapping[str, float]) -> None:
    known = sorted(set(all_cohorts))
    unknown = [name for name in cohort_weights if name not in known]
    if not unknown:
        return
    if known in ([], [""]):
        raise UserError(
            f"patches.cohort_weights names cohort {unknown[0]!r}, but no slide of the index has a cohort",
            hint="give a column `cohort` in a CSV: slides.overrides",
        )
    raise UserError(
        f"patches.cohort_weights names cohort {unknown[0]!r}, which no slide has",
        hint="the cohorts of the index: " + first_of([*map(repr, known)], _NAMED_AT_MOST),
    )


Split = Literal["train", "heldout", "all"]

_NAMED_FOR_PATTERN = 5
# Rises when another way of finding them would find others.
_FORM = 1
# What of the configuration decides which slides are drawn from, and how often.
_DECISIVE = ("patch_px", "mpp", "mpp_weights", "mpp_range", "mpp_tolerance", "min_foreground", "weighting",
             "cohort_weights", "slide_fraction", "heldout")  # fmt: skip
# Columns of a snapshot that decide what a slide offers.
_OFFERING = ["ok", "mask_start", "tissue_mm2", "mpp_x", "mpp_y", "width_px", "height_px", "downsample",
             "least_downsample"]  # fmt: skip


@dataclass(frozen=True)
class Eligible:
    """Slides to draw from, as arrays that the workers of a node map from one file each."""

    snapshot: Snapshot
    config: PatchesConfig
    rows: npt.NDArray[np.int64]
    """Rows of the snapshot, [n]."""
    slide_cumulative: Float64
    """Cumulative weights of the slides, ending at 1, [n]."""
    magnifications: Magnifications
    patterns: Sequence[str]
    """Of the slides' keys."""

    @cached_property
    def excluded(self) -> dict[str, str]:
        """Why other slides of the patterns give no patch, by slide."""
        return among(_excluded(self.snapshot, self.config), self.patterns)

    def pick(self, uniforms: Float64) -> list[int]:
        """The slides (positions in `rows`) at each of `uniforms` in [0, 1)."""
        found: list[int] = self.slide_cumulative.searchsorted(uniforms, "right").tolist()
        return found


def find_eligible(
    snapshot: Snapshot, config: PatchesConfig, split: Split, patterns: Sequence[str] = ("*",)
) -> Eligible:
    """The slides of `split`, and of their keys' `patterns`, that offer at least one wanted mpp.

    Patients are split among the slides that serve, so that neither side is empty where two patients
    have such slides. The first worker of a node works it out for all. Raises `UserError` naming slides with
    their reasons where no slide is left, or a pattern that matches none.
    """
    wanted = config.model_dump(mode="json", include=set(_DECISIVE))
    rows_sha256 = snapshot.manifest.rows_sha256
    asked = json.dumps([rows_sha256, FORM, _FORM, wanted, split, list(patterns)], sort_keys=True)

    def make(folder: Path) -> None:
        for name, array in _find(snapshot, config, split, patterns).items():
            np.save(folder / f"{name}.npy", array)

    folder = made_once(f"eligible-{hashlib.sha256(asked.encode()).hexdigest()[:32]}", make)
    # As plain arrays: each look into a `memmap` runs Python.
    found = {
        name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
        for name in ("rows", "weights", "offered")
    }
    magnifications = ContinuousMagnifications(found["offered"]) if config.mpp_range is not None else (
        DiscreteMagnifications(config.mpp, found["offered"]))  # fmt: skip
    return Eligible(snapshot, config, found["rows"], found["weights"], magnifications, patterns)


def _find(
    snapshot: Snapshot, config: PatchesConfig, split: Split, patterns: Sequence[str]
) -> dict[str, npt.NDArray[Any]]:
    """Rows, cumulative weights of the slides, and what each offers, as `Magnifications` have it."""
    rows, offered = offers_of(snapshot, config)
    if not len(rows):
        raise _nothing(snapshot, _excluded(snapshot, config))
    kept = _of_split(snapshot, config, rows, split)
    kept = matching(snapshot, kept, patterns, lambda: _excluded(snapshot, config))
    offered = offered[np.searchsorted(rows, kept)]
    by_area = config.weighting == "area"
    weights = snapshot.rows.table["tissue_mm2"][kept] if by_area else np.ones(len(kept))
    if split == "train" and config.cohort_weights is not None:
        cohorts = np.array(snapshot.rows.texts("cohort", kept), dtype=object)
        weights = share_out(cohorts, config.cohort_weights, weights)
    if config.mpp_range is None:
        offered = _cumulative(offered * np.array(config.mpp_weights or [1.0] * len(config.mpp)))
    return {"rows": kept, "weights": _cumulative(weights), "offered": offered}


def offers_of(snapshot: Snapshot, config: PatchesConfig) -> tuple[npt.NDArray[np.int64], Float64]:
    """Rows of the slides that serve, [n], and what each offers of the wanted mpps.

    That is 1 for each of `config.mpp` that it offers and 0 for the others, or the finest and coarsest that it
    offers of `config.mpp_range`. As `why_excluded`, of all slides at once.
    """
    # A copy of these few columns: each look at one where it lies passes over all of the others.
    table = repack_fields(snapshot.rows.table[_OFFERING])
    usable = np.flatnonzero(table["ok"] & (table["mask_start"] >= 0) & (table["tissue_mm2"] > 0))
    slides = table[usable]
    if config.mpp_range is None:
        offered = np.stack([_serves(slides, config, mpp) for mpp in config.mpp], axis=1).astype(np.float64)
        some = offered.any(axis=1)
        return usable[some], offered[some]
    finest, coarsest = config.mpp_range
    own = np.maximum(slides["mpp_x"], slides["mpp_y"]) * slides["downsample"] / (1.0 + config.mpp_tolerance)
    finest_own, asked = np.maximum(own, finest), np.empty(len(slides))
    asked[:] = np.minimum(finest_own, coarsest)
    some = np.zeros(len(slides), bool)
    for mpp in np.unique(asked).tolist():  # a few scanners
        alike = asked == mpp
        some[alike] = _serves(slides[alike], config, mpp)
    slides, finest_own = slides[some], finest_own[some]
    sides = np.minimum(slides["width_px"] * slides["mpp_x"], slides["height_px"] * slides["mpp_y"])
    if config.min_foreground > 0:
        sides = np.minimum(sides, 1000.0 * np.sqrt(slides["tissue_mm2"] / config.min_foreground))
    most = np.minimum(coarsest, sides * (1.0 - 1e-9) / config.patch_px)
    return usable[some], np.stack([finest_own, np.maximum(finest_own, most)], axis=1)


def _serves(slides: npt.NDArray[np.void], config: PatchesConfig, mpp: float) -> npt.NDArray[np.bool_]:
    """Whether each of `slides` gives a patch at `mpp`."""
    coarser = np.maximum(slides["mpp_x"], slides["mpp_y"])
    fine = coarser * slides["least_downsample"] <= mpp * (1.0 + config.mpp_tolerance) * ROUNDING
    fits_x = np.ceil(config.patch_px * mpp / slides["mpp_x"]) <= slides["width_px"]
    fits_y = np.ceil(config.patch_px * mpp / slides["mpp_y"]) <= slides["height_px"]
    need_mm2 = config.min_foreground * (config.patch_px * mpp / 1000) ** 2
    return np.asarray(fine & fits_x & fits_y & (slides["tissue_mm2"] >= need_mm2))


def _excluded(snapshot: Snapshot, config: PatchesConfig) -> dict[str, str]:
    """Why slides give no patch, by slide: each is looked at by itself."""
    others = np.ones(len(snapshot.rows), bool)
    others[offers_of(snapshot, config)[0]] = False
    rows = (snapshot.rows.alone(number) for number in np.flatnonzero(others).tolist())
    return {row.slide: why_excluded(row, config) for row in rows}


def among(excluded: Mapping[str, str], patterns: Sequence[str]) -> dict[str, str]:
    """Those of `excluded` whose key matches a pattern."""
    match = [re.compile(translate(pattern)).match for pattern in patterns]
    return {slide: why for slide, why in excluded.items() if any(each(slide) for each in match)}


def matching(
    snapshot: Snapshot,
    rows: npt.NDArray[np.int64],
    patterns: Sequence[str],
    excluded: Callable[[], Mapping[str, str]],
) -> npt.NDArray[np.int64]:
    """Those of `rows` whose slide's key matches a pattern.

    Raises `UserError` for one that matches none, with the reason of a slide of `excluded()` that it matches.
    """
    if tuple(patterns) == ("*",) and len(rows):
        return rows
    names = snapshot.rows.texts("slide", rows)
    matches = {pattern: [fnmatchcase(name, pattern) for name in names] for pattern in patterns}
    for pattern, found in matches.items():
        if not any(found):
            raise _no_match(pattern, len(names), excluded())
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


def _of_split(
    snapshot: Snapshot, config: PatchesConfig, rows: npt.NDArray[np.int64], split: Split
) -> npt.NDArray[np.int64]:
    if split == "all":
        return rows
    is_held = held_out_rows(snapshot.rows, rows, config.heldout.fraction)
    if split == "heldout" and not is_held.any():
        reason = "patches.heldout.fraction is 0" if config.heldout.fraction == 0 else "they are one patient's"
        raise UserError(
            f"no slide can be held out of the {len(rows)} that serve: {reason}",
            hint="give patients in a CSV (slides.overrides), or more slides",
        )
    rows = np.asarray(rows[is_held if split == "heldout" else ~is_held])
    if split == "heldout":
        return rows
    if config.cohort_weights is not None:
        cohorts = snapshot.rows.texts("cohort", rows)
        rows = rows[of_weighted_cohorts(snapshot.rows.texts("cohort"), config.cohort_weights, cohorts)]
    return _subset(snapshot, config, rows)


def _subset(snapshot: Snapshot, config: PatchesConfig, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The share `config.slide_fraction` of the slides, at least one; by hash, so that shares are nested."""
    num_kept = math.ceil(config.slide_fraction * len(rows) - 1e-9)
    if num_kept >= len(rows):
        return rows
    hashes = [hash_unit(f"subset:{slide}") for slide in snapshot.rows.texts("slide", rows)]
    kept: npt.NDArray[np.int64] = np.sort(rows[np.argsort(hashes, kind="stable")[:num_kept]])
    return kept


def _cumulative(weights: Float64) -> Float64:
    """Running shares along the last axis; from the last weight above 0 on exactly 1."""
    sums = np.cumsum(weights, axis=-1)
    return np.asarray(sums / sums[..., -1:])


def why_excluded(row: SlideRow, config: PatchesConfig) -> str:
    """Why `row` offers none of the wanted mpps; empty where it offers one."""
    if config.mpp_range is None:
        reasons = [_refusal(row, config, mpp) for mpp in config.mpp]
        return _nearest(reasons) if all(reasons) else ""
    finest, coarsest = config.mpp_range
    if row.status == OK:
        finest = max(finest, level_mpp(row.header, 0) / (1.0 + config.mpp_tolerance))
    return _refusal(row, config, min(finest, coarsest))


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
