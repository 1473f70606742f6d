"""Everything the report says, gathered once; the page, the Markdown and the JSON are three views of it."""

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from eosin.config import difference, dump_config
from eosin.layout import RunLayout
from eosin.records import MetricRecord, TeacherCard
from eosin.storage import join_uri
from eosin.summary.data_view import DrawsView, SlidesView, view_draws, view_slides
from eosin.summary.headline import SIGNIFICANT, Line, all_lines, headline
from eosin.summary.leaderboard import Leaderboard, leaderboard, published_figures
from eosin.summary.names import metric_name, model_label, number
from eosin.summary.published import Published
from eosin.summary.results import Gap, Result, collect_results, find_gaps
from eosin.summary.training_log import (
    Cost,
    Event,
    Health,
    TrainingLog,
    date_of,
    read_training_log,
    training_cost,
    training_health,
)
from eosin.words import counted

_MAX_WARNINGS = 30
_STATUS_ORDER = ("ok", "failed", "disagreeing", "missing")
_MAX_DIFFERENCE = 300


@dataclass(frozen=True)
class Report:
    """All that the report says; every part of it is optional but the run."""

    published: Published
    results: tuple[Result, ...]
    lines: tuple[Line, ...]
    """The headline table."""
    more_lines: tuple[Line, ...]
    """Every metric, headline ones included."""
    leaderboard: Leaderboard
    """This run beside earlier ones, baselines and figures that others published."""
    verdict: str
    """One sentence: did it learn?"""
    statuses: dict[str, int]
    """Evaluations (not figures) by status."""
    slides: SlidesView | None
    draws: DrawsView | None
    log: TrainingLog | None
    health: Health | None
    """Whether training went well; None before its first step."""
    cost: Cost | None
    differences: tuple[str, ...] | None
    """Configuration against its recipe, `a.b: old → new`; None where the recipe is not packaged."""
    config_yaml: str
    warnings: tuple[tuple[str, str], ...]
    """(step, text) of the warnings that steps logged, each once."""
    provenance: dict[str, Any]

    @property
    def name(self) -> str:
        """The last part of the run's URI."""
        return self.published.run_uri.rstrip("/").rsplit("/", 1)[-1]

    @property
    def surest(self) -> str:
        """How sure the first headline figure with an interval is, in a sentence; empty without one."""
        sure = [(line, line.last.interval) for line in self.lines if line.last and line.last.interval]
        if not sure or sure[0][0].last is None:
            return ""
        line, (low, high) = sure[0]
        mean = number(line.last.mean or 0.0) if line.last else ""
        chance = "" if line.chance is None else f"; {_beside(line.chance, low, high)}"
        between = f"between {number(low)} and {number(high)} with 95 % certainty"
        name = metric_name(line.metric)
        name = name[0].upper() + name[1:]
        return f"{name} on {line.task}: {mean}, {between}, over {line.interval_over}{chance}."

    @property
    def records(self) -> list[MetricRecord]:
        """Every evaluation record that could be read."""
        return [record for _, record in self.published.records]

    @property
    def newest_teacher(self) -> TeacherCard | None:
        """The export of the latest step; None before the first."""
        return self.published.teachers[-1] if self.published.teachers else None

    @property
    def newest_teacher_uri(self) -> str:
        """URI of its folder; empty before the first."""
        card = self.newest_teacher
        return join_uri(self.published.run_uri, RunLayout.teacher(card.name)).rstrip("/") if card else ""

    @property
    def gaps(self) -> list[Gap]:
        """The evaluations that gave no figure to rely on."""
        return find_gaps(
            (model_label(r.model), r.task, r.status, r.reason) for r in self.results if r.status != "ok"
        )


def build_report(published: Published) -> Report:
    """The report of what a run has published."""
    results = collect_results(published)
    records = [record for _, record in published.records]
    every = all_lines(results, records)
    heading = {task.name: task.headline for task in published.config.evaluate.tasks}
    lines = headline(every, results, heading)
    pairs = {(r.model, r.task): r.status for r in results}
    config, log = published.config, read_training_log(published.events)
    differences = None
    if published.recipe is not None:
        changed = difference(_tree(published.recipe), _tree(config))
        differences = tuple(textwrap.shorten(line, _MAX_DIFFERENCE, placeholder=" …") for line in changed)
    return Report(
        published=published,
        results=tuple(results),
        lines=tuple(lines),
        more_lines=tuple(every),
        leaderboard=leaderboard(lines, results, published.earlier, published_figures(results)),
        verdict=_verdict(lines, training_ended=published.training is not None),
        statuses=dict(sorted(Counter(pairs.values()).items(), key=lambda item: _STATUS_ORDER.index(item[0]))),
        slides=view_slides(published.snapshot, config.patches) if published.snapshot else None,
        draws=view_draws(config, published.snapshot) if published.snapshot else None,
        log=log,
        health=training_health(
            log,
            num_prototypes=config.model.dino_head.num_prototypes,
            has_ended=published.training is not None,
        )
        if log
        else None,
        cost=training_cost(log, published.events, config) if log and log.machine["world_size"] else None,
        differences=differences,
        config_yaml=dump_config(config),
        warnings=_warnings(published.events),
        provenance=_provenance(published),
    )


def _beside(value: float, low: float, high: float) -> str:
    told = f"chance is {number(value)}"
    return told if value < low or value > high else f"{told}, so it may have learnt nothing"


def _warnings(events: Sequence[Event]) -> tuple[tuple[str, str], ...]:
    texts = (
        (event.source, str(event.fields.get("message") or event.fields.get("detail") or ""))
        for event in events
        if event.name == "warning"
    )
    return tuple(dict.fromkeys((source, text) for source, text in texts if text))[:_MAX_WARNINGS]


def _tree(config: Any) -> dict[str, Any]:
    tree: dict[str, Any] = config.model_dump(mode="json")
    tree.pop("description")
    return tree


def _verdict(lines: list[Line], *, training_ended: bool) -> str:
    known = [line for line in lines if line.outcome]
    if not known:
        start = "Training has ended" if training_ended else "Training has not ended"
        return f"{start}; no figure can be compared with random initialisation yet."
    newest = next(line.last for line in known if line.last)
    counts = Counter(line.outcome for line in known)
    untested = [line for line in known if line.outcome == "not tested"]
    parts = [f"better on {counts['better']}", f"worse on {counts['worse']}"]
    if counts["may be chance"]:
        parts.append(f"not told from it on {counts['may be chance']}")
    if counts["equal"]:
        parts.append(f"equal on {counts['equal']}")
    if untested:
        parts.append(_untested(untested))
    return (
        f"Against the same network at random initialisation, the teacher of {model_label(newest.model)} is, "
        f"over {counted(len(known), 'headline figure')}: {', '.join(parts)} (p < {SIGNIFICANT} counts)."
    )


def _untested(lines: list[Line]) -> str:
    """Figures of one value, or of too few patients, have a direction and no more."""
    right = sum(bool(line.improved) for line in lines)
    wrong = f" and {len(lines) - right} the wrong way" if right < len(lines) else ""
    return f"{len(lines)} without a test, of which {right} moved the right way{wrong}"


def _provenance(published: Published) -> dict[str, Any]:
    """Where each part came from. The only place with dates."""
    times = [event.time_s for event in published.events]
    manifest = published.snapshot.manifest if published.snapshot else None
    return {
        "run": published.run_uri,
        "config_digest": published.config.digest(),
        "index": published.config.index.uri,
        "snapshot_id": manifest.snapshot_id if manifest else None,
        "slides_uri": published.config.slides.uri,
        "patch_sets": {each.manifest.name: each.manifest.digest for each in published.patch_sets},
        "datasets": {
            record.dataset: record.dataset_digest for _, record in published.records if record.dataset
        },
        "protocols": sorted(
            {f"{r.protocol} v{r.protocol_version}" for _, r in published.records if r.protocol}
        ),
        "teachers": {card.name: card.weights_sha256 for card in published.teachers},
        "eosin_versions": sorted({r.eosin_version for _, r in published.records if r.eosin_version}),
        "report_version": version("eosin"),
        "first_event": date_of(min(times)) if times else None,
        "last_event": date_of(max(times)) if times else None,
    }
