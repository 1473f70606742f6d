"""The summarize step: read what the run published, write the report three times."""

from __future__ import annotations

from dataclasses import dataclass

from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.storage import join_uri, open_store
from eosin.summary.document import to_json
from eosin.summary.html import to_html
from eosin.summary.markdown import to_markdown
from eosin.summary.published import read_published
from eosin.summary.report import Report, build_report


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
