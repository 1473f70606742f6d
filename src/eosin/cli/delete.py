"""delete: a run and all that it published."""

from __future__ import annotations

from typing import Annotated

import typer

from eosin.cli.output import AsJson, Run, emit


def register(app: typer.Typer) -> None:
    """Add the verb to `app`."""
    app.command()(delete)


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
