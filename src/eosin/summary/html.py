"""Report as summary.html, one self-contained page with charts of the run, and as summary.md, by templates."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from eosin.config import RunConfig
from eosin.layout import RANDOM_INIT
from eosin.records import MetricRecord
from eosin.records.details import (
    CentresDetails,
    Details,
    ExpressionDetails,
    JudgedDetails,
    RobustnessDetails,
    ScannerDetails,
    SegmentationDetails,
    SlideDetails,
    Spectrum,
    UnsupervisedDetails,
)
from eosin.records.teacher_folder import features_line, timm_lines
from eosin.summary import names, svg
from eosin.summary.headline import baselines_of, top1_repeats
from eosin.summary.names import metric_name, model_label, signed
from eosin.summary.report import Report
from eosin.summary.results import Result, intervals, listed, metric_order, model_order
from eosin.summary.svg import Chart, Point, Series
from eosin.summary.training_log import Points, TrainingLog

_MAX_SPECTRA = 4
_MIN_SCATTER, _MIN_CORRELATED = 3, 4
_MAX_SCATTER = 5
# Names of classes that fit side by side over a confusion matrix.
_MAX_HEAD_CHARS = 80
# Figures that do not lie between 0 and 1.
_NOT_SHARES = frozenset(
    {"rankme", "quadratic_kappa", *(f"{each}_agreement" for each in ("rotation", "flip", "stain", "blur"))}
)
# Least extent of an axis: of a share, and of any other figure relative to its largest.
_SHARE_SPAN, _SPAN = 0.1, 0.1


@dataclass(frozen=True)
class TaskCharts:
    """Charts of one task over training: those of its headline, and the others."""

    task: str
    main: tuple[Chart, ...]
    more: tuple[Chart, ...]


def metric_charts(report: Report) -> list[TaskCharts]:
    """A chart a task and metric with a point for every step from 0 on; foreign baselines as levels.

    A metric with a single point has no chart: the table says it.
    """
    heading = {(line.task, line.metric) for line in report.lines}
    chance = {(line.task, line.metric): line.chance for line in report.more_lines}
    found = []
    figures = [r for r in report.results if r.metric and r.status in ("ok", "disagreeing")]
    for task in dict.fromkeys(r.task for r in report.results):
        of_task = [r for r in figures if r.task == task]
        names = {str(r.metric) for r in of_task} - ({"top1"} if top1_repeats(of_task) else set())
        charts = {
            name: _metric_chart(name, [r for r in of_task if r.metric == name], chance.get((task, name)))
            for name in sorted(names, key=metric_order)
        }
        drawn = {name: c for name, c in charts.items() if any(len(s.points) > 1 for s in c.series)}
        main = tuple(chart for name, chart in drawn.items() if (task, name) in heading)
        more = tuple(chart for name, chart in drawn.items() if (task, name) not in heading)
        if drawn:
            found.append(TaskCharts(task, main or more, more if main else ()))
    return found


def _metric_chart(name: str, results: Sequence[Result], chance: float | None) -> Chart:
    steps = sorted((r for r in results if r.step is not None), key=lambda r: r.step or 0)
    points = tuple(
        Point(float(r.step or 0), r.mean or 0.0, r.std or 0.0, model_label(r.model), r.interval)
        for r in steps
    )
    arrow = "↑" if results[0].higher_is_better is not False else "↓"
    levels = [(model_label(r.model), r.mean) for r in results if r.step is None and r.mean is not None]
    drawn = [value for p in points for value in (p.y, *(p.interval or ()))]
    is_share = name not in _NOT_SHARES and all(0 <= value <= 1 for value in drawn)
    return Chart(
        title=metric_name(name),
        x_label="training step",
        y_label=f"{metric_name(name)} {arrow}",
        series=(Series(metric_name(name), points),) if points else (),
        levels=(*levels, *([("chance", chance)] if chance is not None else [])),
        y_span=_SHARE_SPAN if is_share else _SPAN * max((abs(p.y) for p in points), default=0.0),
        y_bounds=(0.0, 1.0) if is_share else (-math.inf, math.inf),
    )


def scatter_charts(results: Sequence[Result]) -> list[Chart]:
    """A label-free figure against a supervised one, a point a model; from three trained models on."""
    figures = [r for r in results if r.status == "ok" and r.mean is not None]
    free = {(r.task, str(r.metric)) for r in figures if r.metric in ("rankme", "odcorr")}
    judged = list(dict.fromkeys(r.task for r in figures if r.metric == "balanced_accuracy"))
    charts = []
    for task, name in sorted(free):
        x_of = {r.model: r.mean or 0.0 for r in figures if (r.task, r.metric) == (task, name)}
        series = tuple(_scatter(other, x_of, figures) for other in judged)
        series = tuple(s for s in series if len(s.points) >= _MIN_SCATTER)
        if sum(model != RANDOM_INIT for model in x_of) < _MIN_SCATTER:
            continue
        charts += [
            Chart(title=f"{metric_name(name)} against balanced accuracy",
                  x_label=f"{metric_name(name)} ({task})", y_label="balanced accuracy", series=part)
            for start in range(0, len(series), _MAX_SCATTER) if (part := series[start : start + _MAX_SCATTER])
        ]  # fmt: skip
    return charts


def _scatter(task: str, x_of: dict[str, float], figures: Sequence[Result]) -> Series:
    """The models of a task, and in its name Pearson's correlation with its 95 % interval (Fisher's)."""
    found = [r for r in figures if (r.task, r.metric) == (task, "balanced_accuracy") and r.model in x_of]
    points = tuple(Point(x_of[r.model], r.mean or 0.0, label=model_label(r.model)) for r in found)
    xs, ys = ([getattr(p, axis) for p in points] for axis in "xy")
    name = task
    if len(points) >= _MIN_CORRELATED and len(set(xs)) > 1 and len(set(ys)) > 1:
        r = float(np.clip(np.corrcoef(xs, ys)[0, 1], -1, 1))
        reach = NormalDist().inv_cdf(0.975) / math.sqrt(len(points) - 3)
        with np.errstate(divide="ignore"):
            low, high = np.tanh(np.arctanh(r) + np.array([-reach, reach]))
        name += f", r = {signed(r)} ({signed(low)} to {signed(high)})"
    return Series(name, points, line=False, marked=True)


def spectrum_charts(records: Sequence[MetricRecord]) -> list[Chart]:
    """Singular values of random-init and up to three teachers, relative to the largest."""
    charts = []
    spectra = [
        (record, record.details.spectrum)
        for record in sorted(records, key=lambda r: model_order(r.model, r.step))
        if isinstance(record.details, UnsupervisedDetails) and record.details.spectrum
    ]
    for task in dict.fromkeys(record.task for record, _ in spectra):
        found = [_spectrum(record, spectrum) for record, spectrum in spectra if record.task == task]
        charts.append(
            Chart(title=f"{task}: singular values", x_label="rank", y_label="relative to the largest",
                  series=tuple(_chosen(found)), log_y=True)
        )  # fmt: skip
    return charts


def _chosen(series: Sequence[Series]) -> list[Series]:
    """The first, the last and some between."""
    if len(series) <= _MAX_SPECTRA:
        return list(series)
    places = [round(i * (len(series) - 1) / (_MAX_SPECTRA - 1)) for i in range(_MAX_SPECTRA)]
    return [series[i] for i in places]


def _spectrum(record: MetricRecord, spectrum: Spectrum) -> Series:
    pairs = zip(spectrum.rank, spectrum.relative, strict=True)
    points = tuple(Point(float(rank), max(float(value), 1e-9)) for rank, value in pairs)
    return Series(model_label(record.model), points, marked=False)


_HEALTH = {
    "rankme": ("RankMe of the teacher's features", "RankMe"),
    "teacher_entropy": ("Entropy of the teacher's assignments", "nats"),
    "feature_center_norm": ("Length of the mean feature", "1: all alike"),
    "center_norm": ("Norm of the centre", "norm"),
    "patch_locality": ("Similarity of near patches", "0: no place known"),
    "patch_class_cosine": ("Likeness of patches to their image", "1: copies"),
    "grad_norm": ("Largest gradient norm", "norm before clipping"),
}
_MACHINE = {
    "patches_per_s": ("Throughput", "patches a second"),
    "mfu": ("Model FLOP utilisation", "share of the peak"),
    "data_wait_share": ("Waiting for patches", "share of the time"),
    "memory_gib": ("Peak memory of the first worker", "GiB"),
    "checkpoint_age_s": ("Age of the newest checkpoint", "seconds"),
    "world_size": ("World size", "workers"),
}


def training_charts(
    log: TrainingLog, milestones: Sequence[tuple[str, int]] = ()
) -> tuple[list[Chart], list[Chart]]:
    """First what says whether training goes well, then each term of the loss and the machine's other figures.

    Charts of the machine mark each change of world, those by step the `milestones`.
    """
    last = log.terms["loss"][-1][0]
    marks = tuple((f"{name}, step {step:,}", float(step)) for name, step in milestones if step <= last)
    by_step = partial(_by_step, marks)
    health = {n: by_step(title, label, log.health[n]) for n, (title, label) in _HEALTH.items()}
    machine = {n: _by_time(log, n, title, label) for n, (title, label) in _MACHINE.items()}
    main = [
        by_step("Loss", "loss", log.terms["loss"]),
        *(health.pop(name) for name in ("rankme", "teacher_entropy")),
        *(machine.pop(name) for name in ("patches_per_s", "data_wait_share", "world_size")),
    ]
    terms = [by_step(f"Loss term: {n}", n, points) for n, points in log.terms.items() if n != "loss"]
    more = [*terms, by_step("Learning rate", "learning rate", log.lr, y_from_zero=True)]
    more += [*health.values(), *machine.values()]
    drawn = [[c for c in charts if any(len(s.points) > 1 for s in c.series)] for charts in (main, more)]
    return drawn[0], drawn[1]


def _by_step(
    marks: tuple[tuple[str, float], ...], title: str, label: str, points: Points, *, y_from_zero: bool = False
) -> Chart:
    series = Series(label, _points(points), marked=False)
    return Chart(title, "training step", label, (series,), marks=marks, y_from_zero=y_from_zero)


def _by_time(log: TrainingLog, name: str, title: str, label: str) -> Chart:
    series = Series(label, _points(log.machine[name]), stepped=name == "world_size", marked=False)
    marks = tuple(
        (f"{before:.0f} → {after:.0f} workers at {minutes:.1f} min", minutes)
        for (_, before), (minutes, after) in pairwise(log.machine["world_size"])
        if before != after
    )
    return Chart(title, "minutes since the first step", label, (series,), marks=marks, y_from_zero=True)


def _points(points: Points) -> tuple[Point, ...]:
    return tuple(Point(x, y) for x, y in points)


_BY_MPP = (UnsupervisedDetails, RobustnessDetails, CentresDetails)
_KINDS: dict[str, type[Details]] = {
    "judged": JudgedDetails, "unsupervised": UnsupervisedDetails, "segmentation": SegmentationDetails,
    "slides": SlideDetails, "centres": CentresDetails,
}  # fmt: skip


def to_html(report: Report) -> str:
    """The page. Every name in it is escaped; nothing in it is fetched from anywhere."""
    environment, style = template()
    milestones = course(report.published.config)
    page = environment.get_template("summary.html.j2").render(
        report=report,
        style=style,
        metric_charts=metric_charts(report),
        scatter_charts=scatter_charts(report.results),
        spectrum_charts=spectrum_charts(report.records),
        training_charts=training_charts(report.log, milestones) if report.log else ([], []),
        milestones=milestones,
        tasks=[_task_view(record, report) for record in _newest(report)],
    )
    return page + "\n"


def to_markdown(report: Report) -> str:
    """summary.md: the headline, gaps and slides of a report, for a pull request."""
    return template()[0].get_template("summary.md.j2").render(report=report) + "\n"


def course(config: RunConfig) -> list[tuple[str, int]]:
    """Steps at which the training changed its course; first the run and the crops that it goes on with."""
    init, side_px = config.model.init, config.augment.global_px
    name = init.rstrip("/").rpartition("/")[2]
    begun = [(f"goes on from {name} with crops of {side_px} px", 0)] if init.startswith("run:") else []
    return [*begun, *config.train.milestones()]


def _is_html(name: str | None) -> bool:
    return name is None or ".md." not in name


@cache
def template() -> tuple[Environment, Markup]:
    """The environment, which keeps the compiled template, and the style sheet."""
    loader = PackageLoader("eosin.summary")
    environment = Environment(
        loader=loader, autoescape=_is_html, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "figure": names.figure,
        "number": names.number,
        "signed": names.signed,
        "metric_name": names.metric_name,
        "model_label": names.model_label,
        "plain": names.plain,
        "picture": lambda jpeg: f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}",
        "count": _count,
        "markup": Markup,
    }
    environment.globals |= {
        "draw": lambda chart: Markup(svg.render(chart)), "legend": svg.legend, "listed": listed,
        "baselines_of": baselines_of, "timm_lines": timm_lines, "features_line": features_line,
        "duration": _duration, "hours": _hours,
    }  # fmt: skip
    return environment, Markup(loader.get_source(environment, "summary.css")[0])


def _count(value: float) -> str:
    """A mean count: whole, or with one decimal."""
    return f"{value:,.0f}" if value == round(value) or value >= 100 else f"{value:.1f}"


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"


def _newest(report: Report) -> list[MetricRecord]:
    """Of each task, in the report's order, the record of the newest teacher judged (of a baseline, where
    there is none)."""
    newest: dict[str, MetricRecord] = {}
    for record in sorted(report.records, key=lambda r: model_order(r.model, r.step)):
        if record.status == "ok":
            newest[record.task] = record
    return [newest[task] for task in dict.fromkeys(r.task for r in report.results) if task in newest]


def _task_view(record: MetricRecord, report: Report) -> dict[str, Any]:
    """One record as the template shows it: its details, under the name of their kind too."""
    details, pictures = record.details, report.published.pictures
    parts_by, parts = _parts(details)
    figures = {name: None for each in parts.values() for name in each if name != "num_samples"}
    classes = details.classes if isinstance(details, JudgedDetails) else ()
    return {
        "record": record,
        "details": details,
        **{name: details if isinstance(details, kind) else None for name, kind in _KINDS.items()},
        "intervals": intervals(record),
        "pictures": [(pictures[each.key], each) for each in details.examples if each.key in pictures],
        "confusion": _confusion(record),
        # Its columns then have numbers for names.
        "is_wide": sum(map(len, classes)) > _MAX_HEAD_CHARS,
        "parts_by": parts_by,
        "parts": parts,
        "part_names": list(figures),
    }


def _parts(details: Details) -> tuple[str, dict[str, dict[str, float]]]:
    """Figures of the parts that a task is made of, and what they differ by."""
    if isinstance(details, ScannerDetails):
        return "median over pairs", details.medians
    if isinstance(details, ExpressionDetails):
        return "gene", {gene: {"pearson": value} for gene, value in details.pearson_by_gene.items()}
    return "mpp", details.by_mpp if isinstance(details, _BY_MPP) else {}


def _confusion(record: MetricRecord) -> list[list[tuple[float, float]]]:
    """Mean count over runs, and share of its row; empty where it does not fit the classes."""
    details = record.details
    if not isinstance(details, JudgedDetails):
        return []
    rows, size = details.confusion, len(details.classes)
    if len(rows) != size or any(len(row) != size for row in rows):
        return []
    num_runs: float = max(len(value.values) for value in record.metrics.values())
    if details.num_folds:
        num_runs = sum(map(sum, rows)) / max(1, details.num_judged)
    return [[(n / num_runs, n / max(1, sum(row))) for n in row] for row in rows]
