"""Files that appear whole or not at all."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STALE_S = 600.0


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` to write to; it becomes `path` at the end, or vanishes on an error."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def publish(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all."""
    with published(path) as part:
        part.write_bytes(data)


def remove_stale_parts(folder: Path) -> None:
    """Removes what killed writers left in `folder`: parts that nobody has written to for ten minutes.

    By age, not by process: the writer may run on another machine that shares the folder.
    """
    for part in folder.glob(".*.part"):
        if time.time() - part.stat().st_mtime > _STALE_S:
            part.unlink(missing_ok=True)
