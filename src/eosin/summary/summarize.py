"""The summarize step: read what the run published, write the report as page, Markdown and JSON."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.records import StepFailure, TrainingDone
from eosin.records.base import Record
from eosin.storage import join_uri, open_store
from eosin.summary.data_view import Rejected
from eosin.summary.headline import Outcome
from eosin.summary.html import to_html, to_markdown
from eosin.summary.leaderboard import Source
from eosin.summary.published import read_published
from eosin.summary.report import Report, build_report
from eosin.summary.results import Result, Status
from eosin.summary.training_log import Cost


class SummaryPart(BaseModel):
    """Made of the attributes of what the report holds."""

    model_config = ConfigDict(
        frozen=True, from_attributes=True, extra="ignore", use_attribute_docstrings=True
    )


class SummaryFigure(SummaryPart):
    """A figure of one model."""

    model: str
    """Name of the model."""
    step: int | None
    """Training step; null for a foreign baseline."""
    mean: float
    """Over runs."""
    std: float
    """Over runs."""
    interval: tuple[float, float] | None
    """At 95 %, over patients or images."""


class SummaryLine(SummaryPart):
    """A line of the headline table: one metric of one task."""

    task: str
    """Name of the task."""
    metric: str
    """Name of the metric."""
    higher_is_better: bool
    """Which way is better."""
    chance: float | None
    """What a guess gives, where that is known."""
    random_init: SummaryFigure | None
    """Of the network before training."""
    last: SummaryFigure | None
    """Of the newest teacher judged."""
    best: SummaryFigure | None
    """Of the best teacher, chosen on the data it is judged on."""
    change: float | None
    """Last less random-init."""
    improved: bool | None
    """By sign alone."""
    outcome: Outcome
    """better or worse only where p < .05."""
    p_value: float | None = Field(ge=0, le=1)
    """Two-sided; null where there is no test."""
    test: str
    """What was exchanged, or why there is no p."""


class SummaryCell(SummaryPart):
    """A figure of the table of models side by side."""

    task: str
    """Name of the task."""
    metric: str
    """Name of the metric."""
    mean: float
    """Over runs."""
    std: float
    """Over runs."""
    doubt: str
    """Why it does not compare with this run's; empty where it does."""


class SummaryRow(SummaryPart):
    """A model of the table of models side by side."""

    model: str
    """Name of the model or run."""
    source: Source
    """Where its figures are from."""
    figures: tuple[SummaryCell, ...]
    """Of the headline's metrics."""


class SummaryPatchSet(SummaryPart):
    """A patch set of the run."""

    name: str
    """Of the set."""
    num_patches: int
    """In it."""
    digest: str
    """Of its content."""
    num_slides: int
    """Slides that gave patches."""
    num_rejected: int
    """Patches that could not be read."""


class SummaryData(SummaryPart):
    """The slides of the run."""

    num_slides: int | None
    """In the snapshot of the index."""
    num_used: int | None
    """That the index found nothing against."""
    roles: dict[str, int]
    """How many of those trained, were held out, or were neither."""
    tissue_mm2: float | None
    """Of those that can be used."""
    rejected: tuple[Rejected, ...]
    """Slides that are refused, by reason."""
    patch_sets: tuple[SummaryPatchSet, ...]
    """Of the run."""


class RunSummary(Record):
    """`summary.json` of a run: its report for machines. Dates are in `provenance` alone."""

    run: str
    """URI of the run."""
    recipe: str
    """What its configuration began as."""
    config_digest: str
    """Of its configuration."""
    verdict: str
    """One sentence: did it learn?"""
    training_health: str
    """One sentence: did training go well? Empty before its first step."""
    evaluations: dict[Status, int]
    """Evaluations (model and task) by status."""
    results: tuple[Result, ...]
    """Every figure of every model; of a failed or missing evaluation one line without a metric."""
    headline: tuple[SummaryLine, ...]
    """The main metrics of every task."""
    side_by_side: tuple[SummaryRow, ...]
    """This run beside earlier runs, baselines and published figures."""
    training: TrainingDone | None
    """null until training has ended."""
    cost: Cost | None
    """What training took; null before its first step."""
    data: SummaryData
    """Slides and patch sets."""
    failures: tuple[StepFailure, ...] = ()
    """Of steps that have not succeeded since, each with its time."""
    problems: tuple[str, ...]
    """What could not be read, in words."""
    provenance: dict[str, Any]
    """Where each part came from, with dates."""


def run_summary(report: Report) -> RunSummary:
    """The record; but for its `provenance` it repeats with the same inputs."""
    published, slides = report.published, report.slides
    rows = [
        {
            "model": row.label,
            "source": row.source,
            "figures": [
                {"task": task, "metric": metric, "mean": cell.mean, "std": cell.std, "doubt": cell.doubt}
                for (task, metric), cell in row.cells.items()
            ],
        }
        for row in report.leaderboard.rows
    ]
    patch_sets = [
        {
            **each.manifest.model_dump(include={"name", "num_patches", "digest"}),
            "num_slides": len(each.manifest.slides),
            "num_rejected": len(each.manifest.rejected),
        }
        for each in report.published.patch_sets
    ]
    return RunSummary.model_validate(
        {
            "run": published.run_uri,
            "recipe": published.config.recipe,
            "config_digest": published.config.digest(),
            "verdict": report.verdict,
            "training_health": report.health.sentence if report.health else "",
            "evaluations": report.statuses,
            "results": report.results,
            "headline": report.lines,
            "side_by_side": rows,
            "training": published.training,
            "cost": report.cost,
            "data": {
                "num_slides": slides.num_slides if slides else None,
                "num_used": slides.num_ok if slides else None,
                "roles": slides.roles if slides else {},
                "tissue_mm2": slides.tissue_mm2 if slides else None,
                "rejected": slides.rejected if slides else (),
                "patch_sets": patch_sets,
            },
            "failures": published.failures,
            "problems": published.problems,
            "provenance": report.provenance,
        },
        from_attributes=True,
    )


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
    store.put(RunLayout.SUMMARY_JSON, run_summary(report).to_json())
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
