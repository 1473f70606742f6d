"""status and logs: what a run has come to, from its URI alone."""

from __future__ import annotations

from typing import Annotated

import typer

from eosin.cli.output import AsJson, Run, emit


def register(app: typer.Typer) -> None:
    """Add the verbs to `app`."""
    app.command()(status)
    app.command()(logs)


def status(run: Run, as_json: AsJson = False) -> None:
    """How far a run has come, long after its pods are gone."""
    from eosin.status import run_status

    result = run_status(run)
    emit(result, as_json=as_json, text=str(result))


def logs(
    run: Run,
    source: Annotated[str, typer.Option(help="Only this step: train, index-00000, evaluate-…")] = "",
    tail: Annotated[int | None, typer.Option(help="Only the last so many lines.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing as lines arrive.")] = False,
    as_json: AsJson = False,
) -> None:
    """The run's log lines, in order of time. With --follow, --json prints one object a line."""
    from eosin.status import follow_logs, read_logs

    if follow:
        for line in follow_logs(run, source):
            emit(line.fields, as_json=as_json, text=str(line))
    else:
        lines = read_logs(run, source, tail)
        emit({"lines": [line.fields for line in lines]}, as_json=as_json, text="\n".join(map(str, lines)))
