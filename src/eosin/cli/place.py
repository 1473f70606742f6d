"""place: a compiled pipeline with the pods of its tasks written into it, for kfp's own tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eosin.cli.options import PodSettings, PodsFile
from eosin.cli.output import AsJson, emit
from eosin.errors import UserError
from eosin.kubeflow.parameters import compiled_pipeline, takes
from eosin.kubeflow.task_pods import place_text, read_pods


def register(app: typer.Typer) -> None:
    """Add the verb to `app`."""
    app.command()(place)


def place(
    pipeline: Annotated[
        str, typer.Argument(metavar="PIPELINE", help="pretrain, evaluate, retrain, scaling_study, or a file.")
    ],
    out: Annotated[Path, typer.Option(help="File to write.")],
    pod: PodSettings = None,
    pods: PodsFile = None,
    as_json: AsJson = False,
) -> None:
    """Write a compiled pipeline whose tasks ask for GPUs, memory, /dev/shm and nodes.

    `eosin submit` and `eosin schedule create` take the same options and need no such file.
    """
    path = compiled_pipeline(pipeline)
    takes(path)  # refuses what is no compiled pipeline
    text = place_text(path, read_pods(pod or (), pods))
    try:
        out.write_text(text)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}") from error
    emit({"pipeline": str(out)}, as_json=as_json, text=f"{out}\nnext: kfp run create -e eosin -f {out} run=…")
