"""Room on the demo's disk. An S3 server without any answers InternalError, which tells nobody why."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eosin.errors import EosinError, UserError

NEEDED_BYTES = 256 << 20
"""Of the synthetic demo, slides and report included, generously."""
_FULL_BYTES, _FULL_SHARE = 32 << 20, 0.01
_HINT = "free some space, or name another folder with --folder; the same command continues"


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Raises `UserError` where `folder` has no room to begin with, or what fails here ran out of it."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < NEEDED_BYTES:
        raise UserError(
            f"the disk of {folder} has {_mb(free_bytes)} free, and the demo wants {_mb(NEEDED_BYTES)}",
            hint=_HINT,
        )
    try:
        yield
    except EosinError as error:
        usage = shutil.disk_usage(folder)
        # The server stops taking objects a little before the disk is at its end.
        if usage.free < max(_FULL_BYTES, _FULL_SHARE * usage.total):
            raise UserError(
                f"the disk of {folder} is full ({_mb(usage.free)} free): {error.message}", hint=_HINT
            ) from error
        raise


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"
