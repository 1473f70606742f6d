"""Headline of a report as plain text, for a terminal."""

import io

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eosin.summary.names import metric_name, model_label, number, signed
from eosin.summary.results import find_gaps, listed
from eosin.summary.summarize import RunSummary, SummaryFigure, SummaryLine

_WIDTH = 100


def terminal_table(summary_json: bytes) -> str:
    """Plain text of at most 100 columns: what training brought, then every evaluation without a figure.

    Raises `PermanentError` where the bytes are not a summary.
    """
    summary = RunSummary.from_json(summary_json, source="summary.json")
    console = Console(file=io.StringIO(), width=_WIDTH, highlight=False, color_system=None)
    console.print(_table(summary.headline))
    console.print(summary.verdict, markup=False)
    for gap in find_gaps((r.model, r.task, r.status, r.reason) for r in summary.results if r.status != "ok"):
        names = f"{listed(gap.models, 'models')} · {listed(gap.tasks, 'tasks')}"
        console.print(f"{gap.status}: {names}: {gap.reason}", markup=False)
    output = console.file
    assert isinstance(output, io.StringIO)
    return "\n".join(line.rstrip() for line in output.getvalue().strip("\n").splitlines())


def _table(lines: tuple[SummaryLine, ...]) -> Table:
    models = {line.last.model for line in lines if line.last}
    trained = model_label(models.pop()) if len(models) == 1 else "last teacher"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("task", "metric"):
        table.add_column(name, no_wrap=True)
    for name in ("random-init", trained, "change"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for line in lines:
        cells = (
            line.task,
            f"{metric_name(line.metric)} {'↑' if line.higher_is_better else '↓'}",
            _figure(line.random_init),
            _figure(line.last),
            "–" if line.change is None else signed(line.change),
            line.outcome + ("" if line.p_value is None else f" (p {number(line.p_value)})"),
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _figure(value: SummaryFigure | None) -> str:
    if value is None:
        return "–"
    return number(value.mean) + (f" ± {number(value.std)}" if value.std else "")
