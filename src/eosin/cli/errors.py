"""Errors as a person or a machine wants them; a traceback only on request."""

from __future__ import annotations

import json
import os
import sys
import traceback

from eosin.errors import EosinError, as_missing_dependency, exit_code_of


def render_error(error: BaseException, *, as_json: bool) -> int:
    """Print `error` and return the process's exit code."""
    error = as_missing_dependency(error)
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
