"""demo: the whole pipeline on this machine, S3 server and slides included."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eosin.cli.output import AsJson, Settings, emit


def register(app: typer.Typer) -> None:
    """Add the verb to `app`."""
    app.command()(demo)


def demo(
    slides: Annotated[
        str, typer.Option(help="Your own slides: a file, a folder or an s3:// URI. Empty: synthetic ones.")
    ] = "",
    overrides: Annotated[str, typer.Option(help="CSV with mpp, patient… of slides.")] = "",
    folder: Annotated[Path, typer.Option(help="Where the demo keeps everything.")] = Path(".demo"),
    port: Annotated[int | None, typer.Option(help="Port of the S3 server; default: a free one.")] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """The whole pipeline on this machine. Starts an S3 server on loopback, fills a bucket, runs, reports."""
    from eosin.demo.run import run_demo

    result = run_demo(folder, slides=slides, overrides=overrides, port=port, settings=tuple(settings or ()))
    emit(result, as_json=as_json, text=str(result))
