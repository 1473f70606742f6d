"""Options that several verbs share: parameters of a pipeline, pods of its tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Param = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="NAME=VALUE", help="A parameter of the pipeline; lists in YAML."),
]
PodSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--pod",
        metavar="TASK.KEY=VALUE",
        help="What a task's pods ask for, such as evaluate.gpus=1; or evaluate={gpus: 1, …}.",
    ),
]
PodsFile = Annotated[
    Path | None, typer.Option("--pods", envvar="EOSIN_PODS", help="The same as a YAML file, task by task.")
]
