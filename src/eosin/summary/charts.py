"""Charts of a run: metrics over steps, losses, speed, spectra, unsupervised against supervised."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from eosin.layout import RANDOM_INIT
from eosin.records import MetricRecord
from eosin.records.details import Spectrum, UnsupervisedDetails
from eosin.summary.names import metric_name, model_label
from eosin.summary.result import Result
from eosin.summary.results import metric_order, model_order
from eosin.summary.svg import Chart, Point, Series
from eosin.summary.training_log import Points, TrainingLog

_MAX_SPECTRA = 4
_MIN_SCATTER = 3


def metric_charts(results: Sequence[Result]) -> list[Chart]:
    """A chart a task and metric with a point for every step from 0 on; foreign baselines as levels."""
    charts = []
    figures = [r for r in results if r.metric and r.status in ("ok", "disagreeing")]
    for task in dict.fromkeys(r.task for r in results):
        names = {str(r.metric) for r in figures if r.task == task}
        for name in sorted(names, key=metric_order):
            of_metric = [r for r in figures if (r.task, r.metric) == (task, name)]
            charts.append(_metric_chart(task, name, of_metric))
    return [chart for chart in charts if chart.series]


def _metric_chart(task: str, name: str, results: Sequence[Result]) -> Chart:
    steps = sorted((r for r in results if r.step is not None), key=lambda r: r.step or 0)
    points = tuple(
        Point(float(r.step or 0), r.mean or 0.0, r.std or 0.0, model_label(r.model)) for r in steps
    )
    arrow = "↑" if results[0].higher_is_better is not False else "↓"
    return Chart(
        title=f"{task}: {metric_name(name)}",
        x_label="training step",
        y_label=f"{metric_name(name)} {arrow}",
        series=(Series(metric_name(name), points),) if points else (),
        levels=tuple(
            (model_label(r.model), r.mean) for r in results if r.step is None and r.mean is not None
        ),
    )


def scatter_charts(results: Sequence[Result]) -> list[Chart]:
    """A label-free figure against a supervised one, a point a model; from three trained teachers on."""
    figures = [r for r in results if r.status == "ok" and r.step is not None and r.mean is not None]
    free = {(r.task, str(r.metric)) for r in figures if r.metric in ("rankme", "odcorr")}
    judged = {r.task: "balanced_accuracy" for r in figures if r.metric == "balanced_accuracy"}
    charts = []
    for task, name in sorted(free):
        x_of = {r.model: r for r in figures if (r.task, r.metric) == (task, name)}
        series = tuple(_scatter(other, metric, x_of, figures) for other, metric in sorted(judged.items()))
        series = tuple(s for s in series if len(s.points) > _MIN_SCATTER - 1)
        if series and sum(model != RANDOM_INIT for model in x_of) >= _MIN_SCATTER:
            charts.append(Chart(title=f"{metric_name(name)} against balanced accuracy",
                                x_label=f"{metric_name(name)} ({task})", y_label="balanced accuracy",
                                series=series))  # fmt: skip
    return charts


def _scatter(task: str, metric: str, x_of: dict[str, Result], figures: Sequence[Result]) -> Series:
    pairs = [(x_of[r.model], r) for r in figures if (r.task, r.metric) == (task, metric) and r.model in x_of]
    points = [Point(x.mean or 0.0, y.mean or 0.0, label=model_label(y.model)) for x, y in pairs]
    return Series(task, tuple(points), line=False, marked=True)


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


def training_charts(log: TrainingLog) -> list[Chart]:
    """Loss and its terms, learning rate, signals of collapse, then the machine with each change of world."""
    charts = [
        _by_step("Loss", "loss", log.terms["loss"]),
        *(_by_step(f"Loss term: {n}", n, points) for n, points in log.terms.items() if n != "loss"),
        _by_step("Learning rate", "learning rate", log.lr, y_from_zero=True),
        *(_by_step(title, label, log.health[name]) for name, (title, label) in _HEALTH.items()),
        *(_by_time(log, name, title, label) for name, (title, label) in _MACHINE.items()),
    ]
    return [chart for chart in charts if any(series.points for series in chart.series)]


def _by_step(title: str, label: str, points: Points, *, y_from_zero: bool = False) -> Chart:
    series = Series(label, _points(points), marked=False)
    return Chart(title, "training step", label, (series,), y_from_zero=y_from_zero)


def _by_time(log: TrainingLog, name: str, title: str, label: str) -> Chart:
    series = Series(label, _points(log.machine[name]), stepped=name == "world_size", marked=False)
    marks = tuple(_world_changes(log.machine["world_size"]))
    return Chart(title, "minutes since the first step", label, (series,), marks=marks, y_from_zero=True)


def _world_changes(points: Points) -> list[tuple[str, float]]:
    return [
        (f"{before:.0f} → {after:.0f} workers at {minutes:.1f} min", minutes)
        for (_, before), (minutes, after) in pairwise(points)
        if before != after
    ]


def _points(points: Points) -> tuple[Point, ...]:
    return tuple(Point(x, y) for x, y in points)
