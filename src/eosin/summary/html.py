"""summary.html: one self-contained page, made from the report by a template."""

from __future__ import annotations

import base64
import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from eosin.records import MetricRecord
from eosin.records.teacher_folder import features_line, timm_lines
from eosin.summary import charts, names, svg
from eosin.summary.gaps import listed
from eosin.summary.headline import baselines_of
from eosin.summary.markdown import arrow
from eosin.summary.published import named_examples
from eosin.summary.report import Report
from eosin.summary.results import intervals, model_order, protocol_changes

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
        details=[_task_details(record, report) for record in _newest(report)],
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


def _task_details(record: MetricRecord, report: Report) -> dict[str, Any]:
    """What the template shows of one record; a field a record lacks is empty, not an error."""
    details = record.details
    confusion = details.get("confusion") or []
    classes = [str(name) for name in details.get("classes") or []]
    if len(confusion) != len(classes) or any(len(row) != len(classes) for row in confusion):
        confusion = []
    return {
        "record": record,
        "classes": classes,
        "confusion": [[(int(n), int(n) / max(1, sum(row))) for n in row] for row in confusion],
        "recall": details.get("recall") or {},
        "intervals": intervals(details),
        "examples": _examples(record, report),
        "interval_over": details.get("interval_over", ""),
        "counts": {key: details[key] for key in ("num_train", "num_val", "num_judged") if key in details},
        "judged_on": details.get("judged_on", ""),
        "unit": str(details.get("unit") or "images"),
        **_protocol(record),
        **_segmentation(record, report),
        **_by_mpp(record),
        "centre_counts": details.get("counts") or {},
        "patches_per_slide": details.get("patches_per_slide") or {},
        "notes": [str(note) for note in details.get("notes") or []],
        "num_dropped": details.get("num_dropped", 0),
        "dropped": details.get("dropped") or [],
        "transform": details.get("transform", ""),
    }


def _protocol(record: MetricRecord) -> dict[str, Any]:
    """What the head was trained with, and what of it is not eva's."""
    values = record.details.get("hyperparameters") or {}
    decoder = record.details.get("decoder") or {}
    return {
        "changes": protocol_changes(record),
        "hyperparameters": ", ".join(f"{name} {value}" for name, value in values.items()),
        "decoder": f"{decoder['name']} v{decoder['version']} on {decoder['input']}: {decoder['layers']}"
        if {"name", "version", "input", "layers"} <= set(decoder)
        else "",
    }


def _segmentation(record: MetricRecord, report: Report) -> dict[str, Any]:
    """The picture of patch, truth and prediction, and the colours in it."""
    colors = record.details.get("colors") or {}
    return {
        "picture": report.published.pictures.get(str(record.details.get("picture", ""))),
        "colors": {str(name): str(color) for name, color in colors.items() if _COLOR.fullmatch(str(color))},
    }


def _examples(record: MetricRecord, report: Report) -> list[dict[str, Any]]:
    """Pictures of neighbours, components and attention that are still there."""
    pictures = report.published.pictures
    return [
        {"jpeg": pictures[each["key"]], "caption": str(each.get("caption", ""))}
        for each in named_examples(record)
        if each["key"] in pictures
    ]


def _by_mpp(record: MetricRecord) -> dict[str, Any]:
    """Figures of each magnification, and the names of those that any of them has."""
    details = record.details
    figures: dict[str, dict[str, float]] = details.get("by_mpp") or details.get("retrieval_by_mpp") or {}
    for mpp, index in (details.get("robustness_index_by_mpp") or {}).items():
        figures[mpp] = {} if index is None else {"robustness_index": index}
    names = {name: None for each in figures.values() for name in each if name != "num_samples"}
    return {"by_mpp": figures, "by_mpp_names": list(names)}
