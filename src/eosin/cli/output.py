"""Results on standard output: JSON with --json, otherwise lines for a person."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from pydantic import BaseModel

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="The run's URI: s3://bucket/runs/NAME.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one key of the configuration.")
]


def emit(result: Any, *, as_json: bool, text: str | None = None) -> None:
    """Print `result` as JSON, or `text` (default: its fields, one a line; nothing where it is empty)."""
    if as_json:
        print(json.dumps(plain(result), ensure_ascii=False), flush=True)
    elif text is not None:
        if text:
            print(text, flush=True)
    else:
        fields = plain(result)
        for key, value in fields.items() if isinstance(fields, Mapping) else [("result", fields)]:
            print(f"{key:>16}  {value}")


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
