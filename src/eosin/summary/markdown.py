"""summary.md: the headline for a pull request."""

from __future__ import annotations

from eosin.records import StepFailure
from eosin.summary.headline import Line
from eosin.summary.leaderboard import Cell, Leaderboard, line_column
from eosin.summary.names import figure, metric_name, model_label, number, signed
from eosin.summary.report import Report
from eosin.summary.results import Gap, listed


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
    return line.outcome if p_value is None else f"{line.outcome} (p = {p_value:.3f})"


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
