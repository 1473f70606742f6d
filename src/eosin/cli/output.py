"""Output and shared options of the verbs: results as JSON or for a person, errors as either."""

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

import typer
from pydantic import BaseModel

from eosin.config.load import require_each_once
from eosin.errors import EosinError, as_user_error, exit_code_of


def _each_once(settings: list[str] | None) -> list[str] | None:
    require_each_once(settings or ())
    return settings


def key_values(name: str, help: str, metavar: str = "KEY=VALUE") -> Any:
    """An option that may be given again and again, once for each key."""
    return typer.Option(name, metavar=metavar, help=help, callback=_each_once)


Settings = Annotated[list[str] | None, key_values("--set", "Override one key of the configuration.", "A.B=C")]
Param = Annotated[
    list[str] | None, key_values("--param", "A parameter of the pipeline; lists in YAML.", "NAME=VALUE")
]
PodSettings = Annotated[
    list[str] | None,
    key_values(
        "--pod",
        "What a task's pods ask for, such as evaluate.gpus=1; or evaluate={gpus: 1, …}.",
        "TASK.KEY=VALUE",
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


AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="The run's URI: s3://bucket/runs/NAME.")]


class ReaderGone(Exception):
    """Whoever read standard output has closed it, as `head` does once it has enough."""


def emit(result: Any, *, as_json: bool, text: str) -> None:
    """Print `result` as one JSON object, or `text` (nothing where it is empty)."""
    if as_json:
        say(json.dumps(plain(result), ensure_ascii=False))
    elif text:
        say(text)


def say(text: str) -> None:
    """Print a line to standard output. Raises `ReaderGone` where nobody reads it any more."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python would try again to write what is left when the process ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ReaderGone from None


def lines(*parts: str) -> str:
    """The parts that are not empty, one a line."""
    return "\n".join(part for part in parts if part)


def local_path(uri: str) -> str:
    """A file's URI as the path that a shell takes; any other URI as it is."""
    return unquote(uri.removeprefix("file://")) if uri.startswith("file://") else uri


def plain(value: Any) -> Any:
    """JSON values of a record, dataclass or container of them."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def render_error(error: BaseException, *, as_json: bool) -> int:
    """Print `error` and return the process's exit code."""
    error = as_user_error(error)
    code = exit_code_of(error)
    message = error.message if isinstance(error, EosinError) else f"{type(error).__name__}: {error}"
    hint = error.hint if isinstance(error, EosinError) else "set EOSIN_TRACEBACK=1 to see where it happened"
    if os.environ.get("EOSIN_TRACEBACK") == "1":
        traceback.print_exception(error)
    return show_failure(message, hint, code, as_json=as_json)


def show_failure(message: str, hint: str, code: int, *, as_json: bool) -> int:
    """Print a failure, to standard output where a machine reads it; returns `code`."""
    if as_json:
        print(json.dumps({"error": {"message": message, "hint": hint, "exit_code": code}}))
    else:
        print(f"error: {message}" + (f"\n  → {hint}" if hint else ""), file=sys.stderr)
    return code
