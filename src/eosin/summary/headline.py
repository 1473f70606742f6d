"""Headline table: what training brought, task by task, against where it began."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from eosin.layout import RANDOM_INIT
from eosin.metrics.significance import Significance, significance
from eosin.records import MetricRecord
from eosin.records.details import ClassifierDetails, Details
from eosin.summary.results import Result, metric_order, model_order

SIGNIFICANT = 0.05
Outcome = Literal["better", "worse", "may be chance", "not tested", "equal", ""]


@dataclass(frozen=True)
class Line:
    """One metric of one task, over models; every cell is a result with status ok, or None."""

    task: str
    metric: str
    higher_is_better: bool
    random_init: Result | None
    baselines: tuple[Result, ...]
    """Foreign models."""
    last: Result | None
    """Of the newest teacher judged."""
    best: Result | None
    """The teacher with the best mean; chosen on the very data it is judged on, so it flatters."""
    significance: Significance | None = None
    """Of the newest teacher against random-init."""
    chance: float | None = None
    """What a guess that has learnt nothing gives; None where that is not known."""
    interval_over: str = ""
    """What the newest teacher's interval is over: `12 patients`; or why there is none."""

    def of(self, model: str) -> Result | None:
        """The figure of the foreign model of that name."""
        return next((result for result in self.baselines if result.model == model), None)

    @property
    def arrow(self) -> str:
        """↑ where higher is better, else ↓."""
        return "↑" if self.higher_is_better else "↓"

    @property
    def change(self) -> float | None:
        """Newest teacher less random-init."""
        if self.random_init is None or self.last is None:
            return None
        return _mean(self.last) - _mean(self.random_init)

    @property
    def p_value(self) -> float | None:
        """Two-sided; None where there is no test."""
        return self.significance.p_value if self.significance else None

    @property
    def test(self) -> str:
        """What was exchanged, or why there is no p."""
        return self.significance.how if self.significance else ""

    @property
    def improved(self) -> bool | None:
        """By sign alone; None where a figure is missing, or they are equal."""
        change = self.change
        return None if not change else (change > 0) == self.higher_is_better

    @property
    def outcome(self) -> Outcome:
        """What may be said of the change: better or worse only where chance does not explain it."""
        if self.improved is None:
            return "equal" if self.change == 0 else ""
        if self.p_value is None:
            return "not tested"
        if self.p_value >= SIGNIFICANT:
            return "may be chance"
        return "better" if self.improved else "worse"


def headline(
    lines: Sequence[Line], results: Sequence[Result], wanted: Mapping[str, Sequence[str]] | None = None
) -> list[Line]:
    """Of `lines` the main metrics of every task, in the order of `results`.

    `wanted`: the metrics that head a task, by its name; a task that is not there shows all it has.
    """
    found = {(line.task, line.metric): line for line in lines}
    chosen = []
    for task in dict.fromkeys(result.task for result in results):
        usable = [r for r in results if r.task == task and r.status == "ok" and r.metric]
        names = {str(r.metric) for r in usable}
        names -= {"top1"} if top1_repeats(usable) else set()
        heading = [name for name in (wanted or {}).get(task, ()) if name in names]
        chosen += [found[task, name] for name in heading or sorted(names, key=metric_order)]
    return chosen


def top1_repeats(results: Sequence[Result]) -> bool:
    """Whether top-1 of every model is its balanced accuracy, as where the classes are balanced."""
    of = {(r.model, r.metric): r.mean for r in results}
    pairs = [
        (mean, of.get((model, "balanced_accuracy")))
        for (model, metric), mean in of.items()
        if metric == "top1"
    ]
    return bool(pairs) and all(
        a is not None and b is not None and math.isclose(a, b, abs_tol=1e-9) for a, b in pairs
    )


def baselines_of(lines: Sequence[Line]) -> tuple[str, ...]:
    """Every foreign model that has a figure in any of `lines`: not each is judged on every task."""
    return tuple(dict.fromkeys(result.model for line in lines for result in line.baselines))


def all_lines(results: Sequence[Result], records: Sequence[MetricRecord]) -> list[Line]:
    """Every metric of every task that has at least one figure, in the order of `results`."""
    figures = [r for r in results if r.status == "ok" and r.metric]
    pairs = dict.fromkeys((r.task, str(r.metric)) for r in figures)
    return [
        _line(task, name, [r for r in figures if (r.task, r.metric) == (task, name)], records)
        for task, name in pairs
    ]


def _line(task: str, metric: str, results: Sequence[Result], records: Sequence[MetricRecord]) -> Line:
    ordered = sorted(results, key=lambda r: model_order(r.model, r.step))
    start = next((r for r in ordered if r.model == RANDOM_INIT), None)
    teachers = [r for r in ordered if r.step is not None and r.model != RANDOM_INIT]
    higher = ordered[0].higher_is_better is not False
    last = teachers[-1] if teachers else None
    of_task = [r for r in records if r.task == task and r.status == "ok"]
    return Line(
        task=task,
        metric=metric,
        higher_is_better=higher,
        random_init=start,
        baselines=tuple(r for r in ordered if r.step is None),
        last=last,
        best=max(teachers, key=lambda r: _mean(r) if higher else -_mean(r), default=None),
        significance=_significance(records, task, metric, start.model, last.model)
        if start and last
        else None,
        chance=next((c for r in of_task if (c := _chance(r.details, metric)) is not None), None),
        interval_over=next((r.details.interval_over for r in of_task if last and r.model == last.model), ""),
    )


def _chance(details: Details, metric: str) -> float | None:
    """Of a guess: 1 over the classes, of top-1 the largest share, of a ranking a half."""
    if metric == "c_index":
        return 0.5
    if not isinstance(details, ClassifierDetails):
        return None
    counts = [count for count in details.class_counts.values() if count]
    if metric.endswith("_shot"):
        metric = "balanced_accuracy"
    known = {"auroc": 0.5, "quadratic_kappa": 0.0}
    if counts:
        known |= {"balanced_accuracy": 1 / len(counts), "top1": max(counts) / sum(counts)}
    return known.get(metric)


def _significance(
    records: Sequence[MetricRecord], task: str, metric: str, before: str, after: str
) -> Significance | None:
    of_model = {r.model: r for r in records if r.task == task and r.status == "ok"}
    if before not in of_model or after not in of_model:
        return None
    return significance(of_model[before], of_model[after], metric)


def _mean(result: Result) -> float:
    assert result.mean is not None
    return result.mean
