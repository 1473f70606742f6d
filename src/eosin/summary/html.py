"""Report page: summary.html, self-contained, made by a template."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from eosin.records import MetricRecord
from eosin.records.details import (
    CentresDetails,
    Details,
    ExamplePicture,
    JudgedDetails,
    RobustnessDetails,
    SegmentationDetails,
    SlideDetails,
    UnsupervisedDetails,
)
from eosin.records.teacher_folder import features_line, timm_lines
from eosin.summary import charts, names, svg
from eosin.summary.gaps import listed
from eosin.summary.headline import baselines_of
from eosin.summary.markdown import arrow
from eosin.summary.report import Report
from eosin.summary.results import intervals, model_order

_BY_MPP = (UnsupervisedDetails, RobustnessDetails, CentresDetails)
_COLOR = re.compile(r"#[0-9a-f]{6}")


def to_html(report: Report) -> str:
    """The page. Every name in it is escaped; nothing in it is fetched from anywhere."""
    environment, style = _template()
    page = environment.get_template("summary.html.j2").render(
        report=report,
        style=style,
        metric_charts=charts.metric_charts(report.results),
        scatter_charts=charts.scatter_charts(report.results),
        spectrum_charts=charts.spectrum_charts(report.records),
        training_charts=charts.training_charts(report.log) if report.log else [],
        tasks=[_task_view(record, report) for record in _newest(report)],
    )
    return page + "\n"


@cache
def _template() -> tuple[Environment, Markup]:
    """The environment, which keeps the compiled template, and the style sheet."""
    loader = PackageLoader("eosin.summary")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "figure": names.figure,
        "number": names.number,
        "signed": names.signed,
        "metric_name": names.metric_name,
        "model_label": names.model_label,
        "picture": _data_uri,
        "markup": Markup,
    }
    environment.globals |= {
        "arrow": arrow, "draw": _draw, "legend": svg.legend, "baselines_of": baselines_of, "listed": listed,
        "timm_lines": timm_lines, "features_line": features_line,
    }  # fmt: skip
    return environment, Markup(loader.get_source(environment, "summary.css")[0])


def _draw(chart: svg.Chart) -> Markup:
    return Markup(svg.render(chart))  # every name in it is escaped where it is drawn


def _data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _newest(report: Report) -> list[MetricRecord]:
    """Of each task, in the report's order, the record of the newest teacher judged (of a baseline, where
    there is none)."""
    newest: dict[str, MetricRecord] = {}
    for record in sorted(report.records, key=lambda r: model_order(r.model, r.step)):
        if record.status == "ok":
            newest[record.task] = record
    return [newest[task] for task in dict.fromkeys(r.task for r in report.results) if task in newest]


@dataclass(frozen=True)
class TaskView:
    """One record as the template shows it: its details by their kind, and what was made of them."""

    record: MetricRecord
    details: Details
    judged: JudgedDetails | None
    unsupervised: UnsupervisedDetails | None
    segmentation: SegmentationDetails | None
    slides: SlideDetails | None
    centres: CentresDetails | None
    intervals: list[tuple[str, float, float]]
    pictures: list[tuple[bytes, ExamplePicture]]
    """Those that are still there."""
    confusion: list[list[tuple[int, float]]]
    """Count and share of its row."""
    colors: dict[str, str]
    by_mpp: dict[str, dict[str, float]]
    by_mpp_names: list[str]
    """Figures that any magnification has."""


def _task_view(record: MetricRecord, report: Report) -> TaskView:
    details, pictures = record.details, report.published.pictures
    judged = details if isinstance(details, JudgedDetails) else None
    segmentation = details if isinstance(details, SegmentationDetails) else None
    by_mpp = details.by_mpp if isinstance(details, _BY_MPP) else {}
    figures = {name: None for each in by_mpp.values() for name in each if name != "num_samples"}
    return TaskView(
        record=record,
        details=details,
        judged=judged,
        unsupervised=details if isinstance(details, UnsupervisedDetails) else None,
        segmentation=segmentation,
        slides=details if isinstance(details, SlideDetails) else None,
        centres=details if isinstance(details, CentresDetails) else None,
        intervals=intervals(record),
        pictures=[(pictures[each.key], each) for each in details.examples if each.key in pictures],
        confusion=_confusion(judged) if judged else [],
        colors={n: c for n, c in segmentation.colors.items() if _COLOR.fullmatch(c)} if segmentation else {},
        by_mpp=by_mpp,
        by_mpp_names=list(figures),
    )


def _confusion(details: JudgedDetails) -> list[list[tuple[int, float]]]:
    """Empty where it does not fit the classes."""
    rows, size = details.confusion, len(details.classes)
    if len(rows) != size or any(len(row) != size for row in rows):
        return []
    return [[(n, n / max(1, sum(row))) for n in row] for row in rows]
