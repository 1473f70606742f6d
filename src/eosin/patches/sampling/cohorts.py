"""Cohort weights: how often each cohort is drawn from, however many slides it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from eosin.errors import UserError
from eosin.index.snapshot import Snapshot
from eosin.patches.sampling.counter_rng import Float64

_NAMED_AT_MOST = 30


def of_weighted_cohorts(
    snapshot: Snapshot, cohort_weights: Mapping[str, float], slides: Iterable[int]
) -> list[int]:
    """Those of `slides` (rows of the snapshot) whose cohort has a weight above 0, in their order.

    Raises `UserError` naming a cohort that the snapshot does not have, with those it has, and one with a
    weight but none of `slides`.
    """
    _refuse_unknown(snapshot, cohort_weights)
    kept = [number for number in slides if cohort_weights.get(snapshot.rows[number].cohort, 0.0) > 0]
    present = {snapshot.rows[number].cohort for number in kept}
    for name, weight in cohort_weights.items():
        if weight > 0 and name not in present:
            raise UserError(
                f"patches.cohort_weights: no slide of cohort {name!r} can be trained on: those it has are "
                "held out, or offer no wanted mpp",
                hint=f"give {name!r} the weight 0, or see `eosin index inspect`",
            )
    return kept


def share_out(
    snapshot: Snapshot, cohort_weights: Mapping[str, float], slides: Iterable[int], weights: Float64
) -> Float64:
    """`weights` [n] of `slides`, scaled so that each cohort's sum is its weight.

    The share of a cohort that has none of `slides` falls to the others, in proportion.
    """
    cohorts = np.array([snapshot.rows[number].cohort for number in slides], dtype=object)
    shared = np.zeros_like(weights)
    for name in dict.fromkeys(cohorts):
        members = cohorts == name
        shared[members] = weights[members] * (cohort_weights[name] / weights[members].sum())
    return shared


def _refuse_unknown(snapshot: Snapshot, cohort_weights: Mapping[str, float]) -> None:
    known = sorted({row.cohort for row in snapshot.rows})
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
