"""The report of a study: each metric against what was varied, over all runs, in three formats."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from eosin.errors import EosinError, TransientError
from eosin.index.snapshot import open_snapshot
from eosin.layout import RunLayout, step_of
from eosin.metrics.significance import significance
from eosin.observability import RunLog
from eosin.patches.sampling.eligible import find_eligible
from eosin.records import MetricRecord, MetricValue, Study, Variant
from eosin.runs import load_pin, load_run, load_study
from eosin.storage import NotFound, join_uri, open_store
from eosin.summary import svg
from eosin.summary.headline import SIGNIFICANT, top1_repeats
from eosin.summary.html import scatter_charts, template
from eosin.summary.names import figure, metric_name
from eosin.summary.published import Reader, metric_records
from eosin.summary.results import metric_order, results_of_all
from eosin.words import counted

SCHEMA_VERSION = 1
_BEFORE = "before training"


@dataclass(frozen=True)
class StudyResult:
    """Where a study's report is, and its headline."""

    report: str
    """URI of summary.html."""
    headline: dict[str, float]
    """`VARIANT TASK METRIC` of each run's newest teacher."""
    num_ok: int
    num_not_ok: int


@dataclass(frozen=True)
class VariantRun:
    """What one run of the study has published."""

    variant: Variant
    records: tuple[MetricRecord, ...]
    problems: tuple[str, ...] = ()
    num_slides: int | None = None
    """Slides that it trains on; None where that is not known."""

    @property
    def label(self) -> str:
        """Its name, and how many slides that is."""
        if self.num_slides is None:
            return self.variant.name
        return f"{self.variant.name} ({counted(self.num_slides, 'slide')})"

    @property
    def newest(self) -> int | None:
        """The step of the newest teacher that was judged."""
        return max((r.step for r in self.records if _is_teacher(r)), default=None)  # type: ignore[type-var]  # a teacher has a step

    def record(self, task: str, metric: str, step: int | None = None) -> MetricRecord | None:
        """Of the teacher of `step`, or of the newest, where it has `metric`."""
        wanted = self.newest if step is None else step
        found = (r for r in self.records if _is_teacher(r) and (r.step, r.task) == (wanted, task))
        return next((r for r in found if metric in r.metrics), None)

    def value(self, task: str, metric: str, step: int | None = None) -> MetricValue | None:
        """The figure of `record`."""
        found = self.record(task, metric, step)
        return found.metrics[metric] if found else None


@dataclass(frozen=True)
class StudyReport:
    """All that the report of a study says."""

    uri: str
    study: Study
    runs: tuple[VariantRun, ...]
    figures: tuple[tuple[str, str], ...]
    """(task, metric) of every figure that any run has."""
    shown: tuple[tuple[str, str], ...] = ()
    """Those of `figures` that do not repeat another, as top-1 does where classes are balanced."""
    charts: tuple[svg.Chart, ...] = ()
    curves: tuple[svg.Chart, ...] = ()
    scatter: tuple[svg.Chart, ...] = ()
    """RankMe and ODCorr against balanced accuracy over the models of all runs."""
    problems: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """The last part of the study's URI."""
        return self.uri.rstrip("/").rpartition("/")[2]

    def untrained(self, run: VariantRun, task: str, metric: str) -> MetricValue | None:
        """Of the model that a run began with, judged in any run of the study."""
        found = (r for each in self.runs for r in each.records
                 if r.status == "ok" and (r.model, r.task) == (run.variant.untrained, task))  # fmt: skip
        return next((r.metrics[metric] for r in found if metric in r.metrics), None)


def report_study(study_uri: str, *, log: RunLog) -> StudyResult:
    """Publish summary.json, summary.md and summary.html of a study, over those that are there.

    Half a study still gives a report, which says what is missing. Raises `UserError` where no study is.
    """
    store = open_store(study_uri)
    report = build_study_report(study_uri)
    # The page goes last: whoever sees it finds the two others beside it.
    store.put(RunLayout.SUMMARY_JSON, _to_json(report))
    store.put(RunLayout.SUMMARY_MD, _to_markdown(report).encode())
    store.put(RunLayout.SUMMARY_HTML, _to_html(report).encode())
    failed = sum(record.status != "ok" for run in report.runs for record in run.records)
    total = sum(len(run.records) for run in report.runs)
    headline = {
        f"{run.variant.name} {task} {metric}": value.mean
        for task, metric in report.figures
        for run in report.runs
        if (value := run.value(task, metric))
    }
    result = StudyResult(join_uri(study_uri, RunLayout.SUMMARY_HTML), headline, total - failed, failed)
    log.event("report", uri=result.report, ok=result.num_ok, not_ok=failed, runs=len(report.runs))
    return result


def build_study_report(study_uri: str) -> StudyReport:
    """All that the runs of a study have published, and the charts of it."""
    study = load_study(study_uri)
    runs = tuple(_read(variant, count_slides=study.key.startswith("patches.")) for variant in study.variants)
    found = {
        (record.task, metric) for run in runs for record in run.records if record.status == "ok"
        for metric in record.metrics
    }  # fmt: skip
    figures = tuple(sorted(found, key=lambda pair: (pair[0], metric_order(pair[1]))))
    results = results_of_all(_models(runs))
    tasks = {task: [r for r in results if r.task == task] for task, _ in figures}
    shown = tuple(pair for pair in figures if pair[1] != "top1" or not top1_repeats(tasks[pair[0]]))
    report = StudyReport(
        study_uri, study, runs, figures, shown, problems=tuple(line for run in runs for line in run.problems)
    )
    return replace(
        report,
        charts=_drawable(_chart(report, *pair) for pair in shown),
        curves=_drawable(_curves(report, *pair) for pair in shown),
        scatter=tuple(scatter_charts(results_of_all(_models(runs)))),
    )


def _models(runs: Iterable[VariantRun]) -> list[MetricRecord]:
    """Records of every model that any run judged, each weight once a task, under names that differ."""
    found: dict[tuple[str, ...], MetricRecord] = {}
    for run in runs:
        for record in run.records:
            key = (record.model_digest or f"{run.variant.name} {record.model}", record.task)
            named = record.model_copy(update={"model": f"{run.variant.name} {record.model}"})
            found.setdefault(key, named)
    return [record for record in found.values() if record.status == "ok"]


def _drawable(charts: Iterable[svg.Chart]) -> tuple[svg.Chart, ...]:
    return tuple(chart for chart in charts if any(series.points for series in chart.series))


def _num_slides(run_uri: str) -> int | None:
    """That a run trains on; None where its slides are not known, or it reads a patch set."""
    try:
        config, pin = load_run(run_uri), load_pin(run_uri)
        if config.patches.source != "slides":
            return None
        snapshot = open_snapshot(pin.index_uri, pin.snapshot_id)
        return len(find_eligible(snapshot, config.patches, "train").rows)
    except TransientError:
        raise
    except (EosinError, NotFound):
        return None


def _read(variant: Variant, *, count_slides: bool) -> VariantRun:
    reader = Reader(open_store(variant.run))
    records = [record for _, record in metric_records(reader)]
    problems = [f"{variant.name}: {line}" for line in reader.problems]
    failed = [r for r in records if r.status != "ok"]
    problems += [f"{variant.name}: {r.model} on {r.task} failed: {r.reason}" for r in failed]
    if not any(map(_is_teacher, records)):
        problems.append(f"{variant.name}: no teacher of it has been judged")
    num_slides = _num_slides(variant.run) if count_slides else None
    return VariantRun(variant, tuple(records), tuple(problems), num_slides)


def _is_teacher(record: MetricRecord) -> bool:
    return record.status == "ok" and bool(step_of(record.model))


def _chart(report: StudyReport, task: str, metric: str) -> svg.Chart:
    """The newest teacher of each run, and what its training began with, value by value."""
    trained, before = [], []
    for place, run in enumerate(report.runs):
        value, start = run.value(task, metric), report.untrained(run, task, metric)
        if value:
            trained.append(svg.Point(float(place), value.mean, value.std, run.variant.name))
        if start:
            before.append(svg.Point(float(place), start.mean, start.std, f"{run.variant.name}, {_BEFORE}"))
    series = (svg.Series("trained", tuple(trained)), svg.Series(_BEFORE, tuple(before)))
    return svg.Chart(
        title=f"{task}: {metric_name(metric)}",
        x_label=report.study.key,
        y_label=f"{metric_name(metric)} {_arrow(report, task, metric)}",
        series=series,
        x_names=tuple(run.label for run in report.runs),
    )


def _curves(report: StudyReport, task: str, metric: str) -> svg.Chart:
    """Every judged teacher of each run over its steps."""
    series = []
    for run in report.runs:
        steps = sorted({r.step for r in run.records if _is_teacher(r) and r.step})
        values = [(step, run.value(task, metric, step)) for step in steps]
        start = report.untrained(run, task, metric)
        points = [svg.Point(0.0, start.mean, start.std, _BEFORE)] if start else []
        points += [svg.Point(float(step), each.mean, each.std) for step, each in values if each]
        series.append(svg.Series(run.variant.name, tuple(points)))
    return svg.Chart(
        title=f"{task}: {metric_name(metric)}",
        x_label="training step",
        y_label=f"{metric_name(metric)} {_arrow(report, task, metric)}",
        series=tuple(series),
    )


def _arrow(report: StudyReport, task: str, metric: str) -> str:
    values = (r.metrics.get(metric) for run in report.runs for r in run.records if r.task == task)
    return "↑" if next((v.higher_is_better for v in values if v), True) else "↓"


def _rows(report: StudyReport) -> list[dict[str, Any]]:
    """A row a figure: its cells in the order of the variants, and the place of the best."""
    rows = []
    for task, metric in report.shown:
        values = [run.value(task, metric) for run in report.runs]
        higher = _arrow(report, task, metric) == "↑"
        best = _best(report, task, metric, higher=higher)
        cells = [{"text": figure(v), "best": place == best} for place, v in enumerate(values)]
        name = f"{metric_name(metric)} {'↑' if higher else '↓'}"
        rows.append({"task": task, "metric": name, "cells": cells})
    return rows


def _best(report: StudyReport, task: str, metric: str, *, higher: bool) -> int | None:
    """Place of the run that is better than the second best by more than chance explains (p < .05)."""
    found = [(run.record(task, metric), place) for place, run in enumerate(report.runs)]
    ranked = sorted(
        ((record, place) for record, place in found if record),
        key=lambda each: each[0].metrics[metric].mean,
        reverse=higher,
    )
    if len(ranked) < 2:
        return None
    test = significance(ranked[1][0], ranked[0][0], metric)
    return ranked[0][1] if test and test.p_value is not None and test.p_value < SIGNIFICANT else None


def _to_json(report: StudyReport) -> bytes:
    document = {
        "schema_version": SCHEMA_VERSION,
        "study": report.uri,
        "key": report.study.key,
        "variants": [
            {
                "name": run.variant.name, "value": run.variant.value, "run": run.variant.run,
                "step": run.newest, "num_slides": run.num_slides, "figures": _figures(report, run),
            }
            for run in report.runs
        ],
        "correlations": [line for chart in report.scatter for line in _correlations(chart)],
        "problems": list(report.problems),
    }  # fmt: skip
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _correlations(chart: svg.Chart) -> list[str]:
    return [f"{chart.title}, {series.name}, over {len(series.points)} models" for series in chart.series]


def _figures(report: StudyReport, run: VariantRun) -> list[dict[str, Any]]:
    found = []
    for task, metric in report.figures:
        value, before = run.value(task, metric), report.untrained(run, task, metric)
        if value:
            found.append({
                "task": task, "metric": metric, "mean": value.mean, "std": value.std,
                "values": list(value.values), "higher_is_better": value.higher_is_better,
                "before_training": before.mean if before else None,
            })  # fmt: skip
    return found


def _to_markdown(report: StudyReport) -> str:
    found = [line for chart in report.scatter for line in _correlations(chart)]
    page = template()[0].get_template("study.md.j2")
    return page.render(report=report, rows=_rows(report), correlations=found) + "\n"


def _to_html(report: StudyReport) -> str:
    environment, style = template()
    page = environment.get_template("study.html.j2").render(report=report, rows=_rows(report), style=style)
    return page + "\n"
