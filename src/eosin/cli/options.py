"""Options that several verbs share: a pipeline's parameters, its tasks' pods, where a run goes on."""

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
Host = Annotated[
    str, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="Address of the Kubeflow Pipelines API.")
]
ClusterNamespace = Annotated[
    str, typer.Option(help="Namespace of the run's pods; none: what the run noted when it was submitted.")
]
Context = Annotated[str, typer.Option(help="Context of the kubeconfig; none: the current one.")]
