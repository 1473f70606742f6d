"""Demo verbs: the whole pipeline on this machine, S3 server and slides included, and a look at it."""

from pathlib import Path
from typing import Annotated

import typer

from eosin.cli.output import AsJson, Settings, emit

demo_app = typer.Typer(name="demo", help="The whole pipeline on this machine, and a look at what it left.")
Folder = Annotated[Path, typer.Option(help="Where the demo keeps everything.")]


@demo_app.callback(invoke_without_command=True)
def demo(
    context: typer.Context,
    slides: Annotated[
        str, typer.Option(help="Your own slides: a file, a folder or an s3:// URI. Empty: synthetic ones.")
    ] = "",
    overrides: Annotated[str, typer.Option(help="CSV with mpp, patient… of your slides.")] = "",
    folder: Folder = Path(".demo"),
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """The whole pipeline on this machine. Starts an S3 server on loopback, fills a bucket, runs, reports."""
    if context.invoked_subcommand is not None:
        return
    from eosin.demo.run import run_demo

    result = run_demo(folder, slides=slides, overrides=overrides, settings=tuple(settings or ()))
    emit(result, as_json=as_json, text=str(result))


@demo_app.command()
def status(folder: Folder = Path(".demo"), as_json: AsJson = False) -> None:
    """How far the newest run of the demo has come; starts the demo's S3 server for it."""
    from eosin.demo.run import demo_status

    result = demo_status(folder)
    emit(result, as_json=as_json, text=str(result))


@demo_app.command("exec", context_settings={"ignore_unknown_options": True})
def exec_(
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="After --, such as: -- eosin logs URI.")
    ],
    folder: Folder = Path(".demo"),
) -> int:
    """Run a command with the demo's S3 server up and its credentials set; ends with its exit code."""
    from eosin.demo.run import run_beside

    return run_beside(folder, command)
