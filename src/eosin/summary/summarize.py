"""The summarize step: read what the run published, write the report as page, Markdown and JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.records import PatchSetManifest
from eosin.storage import join_uri, open_store
from eosin.summary.data_view import Rejected
from eosin.summary.headline import Line
from eosin.summary.html import to_html
from eosin.summary.leaderboard import Row
from eosin.summary.markdown import to_markdown
from eosin.summary.published import read_published
from eosin.summary.report import Report, build_report
from eosin.summary.results import Result

SCHEMA_VERSION = 1


def document(report: Report) -> dict[str, Any]:
    """JSON values only. Dates are in `provenance` alone, so that the rest repeats with the same inputs."""
    training = report.published.training
    return {
        "schema_version": SCHEMA_VERSION,
        "run": report.published.run_uri,
        "recipe": report.published.config.recipe,
        "config_digest": report.published.config.digest(),
        "verdict": report.verdict,
        "evaluations": report.statuses,
        "results": [result.model_dump(mode="json") for result in report.results],
        "headline": [_line(line) for line in report.lines],
        "side_by_side": [_row(row) for row in report.leaderboard.rows],
        "training": None
        if training is None
        else {
            "num_steps": training.num_steps,
            "final_loss": training.final_loss,
            "models": list(training.models),
        },
        "data": _data(report),
        "problems": list(report.published.problems),
        "provenance": report.provenance,
    }


def to_json(report: Report) -> bytes:
    """summary.json: the document as indented JSON, UTF-8; no number in it is NaN."""
    return (json.dumps(document(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _line(line: Line) -> dict[str, Any]:
    test = line.significance
    return {
        "task": line.task,
        "metric": line.metric,
        "higher_is_better": line.higher_is_better,
        "random_init": _figure(line.random_init),
        "last": _figure(line.last),
        "best": _figure(line.best),
        "change": line.change,
        "improved": line.improved,
        "outcome": line.outcome,
        "p_value": test.p_value if test else None,
        "test": test.how if test else "",
    }


def _row(row: Row) -> dict[str, Any]:
    figures = [
        {"task": task, "metric": metric, "mean": cell.mean, "std": cell.std, "doubt": cell.doubt}
        for (task, metric), cell in row.cells.items()
    ]
    return {"model": row.label, "source": row.source, "figures": figures}


def _figure(result: Result | None) -> dict[str, Any] | None:
    if result is None:
        return None
    return {"model": result.model, "step": result.step, "mean": result.mean, "std": result.std}


def _data(report: Report) -> dict[str, Any]:
    slides = report.slides
    return {
        "num_slides": slides.num_slides if slides else None,
        "num_used": slides.num_ok if slides else None,
        "tissue_mm2": slides.tissue_mm2 if slides else None,
        "rejected": [_rejected(group) for group in (slides.rejected if slides else ())],
        "patch_sets": [_patch_set(each.manifest) for each in report.patch_sets],
    }


def _rejected(group: Rejected) -> dict[str, Any]:
    return {
        "status": group.status,
        "reason": group.words,
        "cure": group.cure,
        "num_slides": group.num_slides,
        "slides": [{"slide": slide, "detail": detail} for slide, detail in group.slides],
    }


def _patch_set(manifest: PatchSetManifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "num_patches": manifest.num_patches,
        "digest": manifest.digest,
        "num_slides": len(manifest.slides),
        "num_rejected": len(manifest.rejected),
    }


@dataclass(frozen=True)
class SummaryResult:
    """Where a run's report is, and its headline."""

    report: str
    """URI of summary.html."""
    verdict: str
    headline: dict[str, float]
    """`TASK METRIC` of the newest teacher, and `TASK METRIC (random-init)`."""
    num_ok: int
    num_not_ok: int
    """Evaluations that failed, are missing or disagree."""


def summarize(run_uri: str, *, log: RunLog) -> SummaryResult:
    """Publish summary.json, summary.md and summary.html of a run, over those that are there.

    Reads records, logs, thumbnails and manifests, never a model or a slide. Whatever is missing or
    damaged is shown as such: half a run still gives a report. Raises `UserError` where there is no run.
    """
    report = build_report(read_published(run_uri))
    store = open_store(run_uri)
    # The page goes last: whoever sees it finds the two others beside it.
    store.put(RunLayout.SUMMARY_JSON, to_json(report))
    store.put(RunLayout.SUMMARY_MD, to_markdown(report).encode())
    store.put(RunLayout.SUMMARY_HTML, to_html(report).encode())
    result = _result(run_uri, report)
    log.event("report", uri=result.report, ok=result.num_ok, not_ok=result.num_not_ok, verdict=result.verdict)
    return result


def _result(run_uri: str, report: Report) -> SummaryResult:
    figures: dict[str, float] = {}
    for line in report.lines:
        for suffix, result in (("", line.last), (" (random-init)", line.random_init)):
            if result is not None and result.mean is not None:
                figures[f"{line.task} {line.metric}{suffix}"] = result.mean
    num_ok = report.statuses.get("ok", 0)
    return SummaryResult(
        report=join_uri(run_uri, RunLayout.SUMMARY_HTML),
        verdict=report.verdict,
        headline=figures,
        num_ok=num_ok,
        num_not_ok=sum(report.statuses.values()) - num_ok,
    )
