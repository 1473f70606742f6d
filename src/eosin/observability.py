"""Progress that a person reads and JSON lines that outlive the pod.

One `RunLog` a step: each event is a JSON object. Events go to standard error (a short line for a
person, or the JSON itself with `EOSIN_LOG=json`) and, where a store is given, to objects of JSON
lines under the run's `logs/`, so that `eosin logs RUN` needs nothing but the URI.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from eosin.layout import RunLayout
from eosin.storage.base import Store

_FLUSH_EVERY_S = 5.0
_EVENTS_PER_PART = 500


class RunLog:
    """Thread-safe log of one step. `source` names the step (`train`, `index-00000`…).

    A part is an object of at most 500 events, rewritten whole every few seconds until it is full:
    a kill loses seconds of log and never leaves half a line. Failing to write a log is reported
    once and never stops the work.
    """

    def __init__(
        self, source: str, store: Store | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.source = source
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._part = self._new_part()
        self._flushed_s = clock()
        self._store_failed = False

    def event(self, name: str, /, **fields: Any) -> None:
        """Record one event; `fields` must be JSON values."""
        now_s = self._clock()
        stamp = datetime.fromtimestamp(now_s, UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": stamp, "source": self.source, "event": name, **fields}, default=str)
        print(line if os.environ.get("EOSIN_LOG") == "json" else _for_people(self.source, name, fields),
              file=sys.stderr, flush=True)  # fmt: skip
        with self._lock:
            self._lines.append(line)
            if now_s - self._flushed_s >= _FLUSH_EVERY_S or len(self._lines) >= _EVENTS_PER_PART:
                self._flush()

    def progress(self, done: int, total: int, unit: str, **fields: Any) -> None:
        """Record how far the step has come."""
        self.event("progress", done=done, total=total, unit=unit, **fields)

    def flush(self) -> None:
        with self._lock:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def _flush(self) -> None:
        self._flushed_s = self._clock()
        if self._store is None or not self._lines or self._store_failed:
            return
        try:
            self._store.put(RunLayout.log(self.source, self._part), ("\n".join(self._lines) + "\n").encode())
        except Exception as error:  # a log must never be what stops a run
            self._store_failed = True
            print(f"{self.source}: the log cannot be written to {self._store.uri}: {error}", file=sys.stderr)
            return
        if len(self._lines) >= _EVENTS_PER_PART:
            self._lines = []
            self._part = self._new_part()

    def _new_part(self) -> str:
        stamp = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y%m%dT%H%M%S.%f")
        return f"{stamp}-{os.getpid()}"


class _Warnings(logging.Handler):
    """What libraries of eosin's own warn of, as events on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        RunLog(record.name.split(".")[1]).event("warning", detail=_cut(record.getMessage()))


def show_warnings() -> None:
    """Let warnings of eosin's modules appear as events do. Called once a process; again is harmless."""
    logger = logging.getLogger("eosin")
    if not any(isinstance(handler, _Warnings) for handler in logger.handlers):
        logger.addHandler(_Warnings(logging.WARNING))
        logger.propagate = False


def _cut(text: str, num_chars: int = 190) -> str:
    return text if len(text) <= num_chars else f"{text[: num_chars - 1]}…"


def printable(text: str) -> str:
    """`text` on one line: names come from buckets, and may hold line breaks and a terminal's controls."""
    # An error and its hint stand on two lines, the second indented.
    text = text.replace("\n  ", " → ")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _for_people(source: str, name: str, fields: dict[str, Any]) -> str:
    values = dict(fields)
    if name == "progress":
        done, total, unit = values.pop("done"), values.pop("total"), values.pop("unit")
        name = f"{done}/{total} {unit}"
    rest = " · ".join(f"{key} {_short(value)}" for key, value in values.items())
    return printable(f"{source}  {name}  {rest}".rstrip())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
