"""Cohort weights: how often each cohort is drawn from, however many slides it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from eosin.errors import UserError
from eosin.patches.sampling.counter_rng import Float64

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
    more = f" and {len(known) - _NAMED_AT_MOST} more" if len(known) > _NAMED_AT_MOST else ""
    raise UserError(
        f"patches.cohort_weights names cohort {unknown[0]!r}, which no slide has",
        hint="the cohorts of the index: " + ", ".join(map(repr, known[:_NAMED_AT_MOST])) + more,
    )
