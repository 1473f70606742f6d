"""Results on standard output: JSON with --json, otherwise lines for a person."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import unquote

import typer
from pydantic import BaseModel

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="The run's URI: s3://bucket/runs/NAME.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one key of the configuration.")
]


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
