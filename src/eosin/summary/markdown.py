"""summary.md, the headline for a pull request, and the same table for a terminal."""

from __future__ import annotations

import io
import json
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eosin.errors import PermanentError
from eosin.records import StepFailure
from eosin.summary.headline import Line
from eosin.summary.leaderboard import Cell, Leaderboard, line_column
from eosin.summary.names import figure, metric_name, model_label, number, signed
from eosin.summary.report import Report
from eosin.summary.results import Gap, find_gaps, listed

_WIDTH = 100


def terminal_table(summary_json: bytes) -> str:
    """Plain text of at most 100 columns: what training brought, then every evaluation without a figure.

    Raises `PermanentError` where the bytes are not a summary.
    """
    try:
        summary: dict[str, Any] = json.loads(summary_json)
        lines, results = summary["headline"], summary["results"]
    except (ValueError, KeyError, TypeError):
        raise PermanentError(
            "summary.json is not a summary", hint="write it again with `eosin summarize`"
        ) from None
    console = Console(file=io.StringIO(), width=_WIDTH, highlight=False, color_system=None)
    console.print(_table(lines))
    console.print(summary.get("verdict", ""), markup=False)
    for gap in find_gaps(
        (r["model"], r["task"], r["status"], r["reason"]) for r in results if r["status"] != "ok"
    ):
        names = f"{listed(gap.models, 'models')} · {listed(gap.tasks, 'tasks')}"
        console.print(f"{gap.status}: {names}: {gap.reason}", markup=False)
    output = console.file
    assert isinstance(output, io.StringIO)
    return "\n".join(line.rstrip() for line in output.getvalue().strip("\n").splitlines())


def _table(lines: list[dict[str, Any]]) -> Table:
    models = {line["last"]["model"] for line in lines if line["last"]}
    trained = model_label(models.pop()) if len(models) == 1 else "last teacher"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("task", "metric"):
        table.add_column(name, no_wrap=True)
    for name in ("random-init", trained, "change"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for line in lines:
        cells = (
            str(line["task"]),
            f"{metric_name(line['metric'])} {'↑' if line['higher_is_better'] else '↓'}",
            _figure(line["random_init"]),
            _figure(line["last"]),
            "–" if line["change"] is None else signed(line["change"]),
            line["outcome"] + ("" if line["p_value"] is None else f" (p {number(line['p_value'])})"),
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _figure(value: dict[str, Any] | None) -> str:
    if value is None:
        return "–"
    spread = f" ± {number(value['std'])}" if value["std"] else ""
    return f"{number(value['mean'])}{spread}"


def to_markdown(report: Report) -> str:
    """summary.md: the headline, gaps and slides of a report, for a pull request."""
    blocks = [
        f"# {_text(report.name)}",
        report.verdict,
        _failures(report.published.failures),
        _headline(report.lines),
        _side_by_side(report.leaderboard),
        _gaps(report.gaps),
        _data(report),
        _problems(report.published.problems),
        _origin(report),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def arrow(line: Line) -> str:
    """↑ where higher is better, else ↓."""
    return "↑" if line.higher_is_better else "↓"


def _failures(failures: tuple[StepFailure, ...]) -> str:
    lines = [
        f"- **{_text(each.step)}** ({each.time}, attempt {each.attempt}): "
        + _text(f"{each.message} {each.hint}")
        for each in failures
    ]
    return "\n".join(["## Steps that failed", "", *lines]) if lines else ""


def _headline(lines: tuple[Line, ...]) -> str:
    if not lines:
        return "No evaluation has a figure yet."
    rows = [
        "| task | metric | random-init | last, with its 95 % interval | change | best |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        change = "–" if line.change is None else f"{signed(line.change)}, {outcome(line)}"
        best = f"{figure(line.best)} ({model_label(line.best.model)})" if line.best else "–"
        last = f"{figure(line.last)}{_interval(line)} ({model_label(line.last.model)})" if line.last else "–"
        name = f"{metric_name(line.metric)} {arrow(line)}"
        cells = (_text(line.task), name, figure(line.random_init), last, change, best)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _side_by_side(board: Leaderboard) -> str:
    """Earlier runs and baselines; published figures are left to the page."""
    rows = [row for row in board.rows if row.source != "published"]
    if not any(row.source == "earlier run" for row in rows):
        return ""
    heads = [f"{_text(line.task)} {metric_name(line.metric)} {arrow(line)}" for line in board.columns]
    table = [f"| model | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for row in rows:
        cells = [row.cells.get(line_column(line)) for line in board.columns]
        table.append(f"| {_text(row.label)} ({row.source}) | {' | '.join(map(_cell, cells))} |")
    return "\n".join(["## Beside earlier runs", "", *table])


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    text = f"**{figure(cell)}**" if cell.is_best else figure(cell)
    return f"{text} ({cell.doubt})" if cell.doubt else text


def outcome(line: Line) -> str:
    """What may be said of the change, with its p."""
    p_value = line.significance.p_value if line.significance else None
    return line.outcome if p_value is None else f"{line.outcome} (p = {number(p_value)})"


def _interval(line: Line) -> str:
    found = line.last.interval if line.last else None
    return f" [{number(found[0])}, {number(found[1])}]" if found else ""


def _gaps(gaps: list[Gap]) -> str:
    if not gaps:
        return ""
    lines = [
        f"- **{gap.status}** {_text(listed(gap.models, 'models'))} · {_text(listed(gap.tasks, 'tasks'))}: "
        f"{_text(gap.reason)}"
        for gap in gaps
    ]
    return "\n".join(["## Evaluations without a figure to rely on", "", *lines])


def _data(report: Report) -> str:
    slides = report.slides
    if slides is None:
        return ""
    lines = [
        f"{slides.num_ok} of {slides.num_slides} slides used, {number(slides.tissue_mm2)} mm² of tissue."
    ]
    lines += [
        f"- {group.num_slides} not used ({_text(group.status)}): {_text(group.reason)}; {_text(group.cure)}"
        for group in slides.rejected
    ]
    return "\n".join(["## Slides", "", *lines])


def _problems(problems: tuple[str, ...]) -> str:
    return "\n".join(["## Not there", "", *(f"- {_text(line)}" for line in problems)]) if problems else ""


def _origin(report: Report) -> str:
    config = report.published.config
    return (
        f"Run `{_code(report.published.run_uri)}` · configuration `{config.digest()[:12]}` · "
        f"recipe {_text(config.recipe)}"
    )


def _text(text: str) -> str:
    """Plain text in a Markdown table: no markup, no HTML, one line."""
    flat = " ".join(text.split())
    for character in "\\`*_[]<>|#":
        flat = flat.replace(character, f"\\{character}")
    return flat


def _code(text: str) -> str:
    return text.replace("`", "'")
