"""gc and delete: what no run, snapshot or registry entry needs; a run and all that it published."""

from __future__ import annotations

from typing import Annotated

import typer

from eosin.cli.output import AsJson, Run, emit


def register(app: typer.Typer) -> None:
    """Add the verbs to `app`."""
    app.command()(gc)
    app.command("delete")(delete)


def gc(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs, or folders of runs.")],
    index: Annotated[list[str] | None, typer.Option(help="Indexes to clean as well.")] = None,
    registry: Annotated[
        list[str] | None, typer.Option(help="Registries whose models keep what they were trained on.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete; without it only list.")] = False,
    min_age_h: Annotated[float, typer.Option(help="Never touch what is younger, in hours.")] = 24.0,
    as_json: AsJson = False,
) -> None:
    """List (or delete) what nothing needs any more."""
    from eosin.retention import collect

    result = collect(runs, index or [], registries=registry or [], delete=delete, min_age_s=min_age_h * 3600)
    emit(result, as_json=as_json, text=str(result))


def delete(
    run: Run,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it only list.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Though it may be at work, or a registry knows its model.")
    ] = False,
    registry: Annotated[
        list[str] | None, typer.Option(help="Refuse where a model of this registry came from the run.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what a run published, or with --yes delete it. Its index and anything not its own stay."""
    from eosin.retention.delete import delete_run

    result = delete_run(run, delete=yes, force=force, registries=registry or [])
    emit(result, as_json=as_json, text=str(result))
