"""Log of a step: progress that a person reads, and JSON lines that outlive the pod.

One `RunLog` a step: each event is a JSON object. Events go to standard error (a short line for a
person, or the JSON itself with `EOSIN_LOG=json`) and, where a store is given, to objects of JSON
lines under the run's `logs/`, so that `eosin logs RUN` needs nothing but the URI.
"""

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Self

from eosin.layout import RunLayout
from eosin.storage.base import Store

_FLUSH_EVERY_S = 5.0
_EVENTS_PER_PART = 500
_WARNING_CHARS = 190
_AFTER_FAILURE_S = 60.0
"""Each try may take as long as the store's retries; what is not written yet is kept meanwhile."""


class RunLog:
    """Thread-safe log of one step. `source` names the step (`train`, `index-00000`…).

    A part is an object of at most 500 events, rewritten whole every few seconds until it is full:
    a kill loses seconds of log and never leaves half a line. Failing to write a log is reported
    once and never stops the work; it is tried again every minute.
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
        self._told_failed = self._attach_failed = False
        self._again_s = 0.0

    @property
    def store(self) -> Store | None:
        """Of the run that the step works for, if there is one."""
        return self._store

    def event(self, name: str, /, **fields: Any) -> None:
        """Record one event; `fields` must be JSON values."""
        now_s = self._clock()
        stamp = datetime.fromtimestamp(now_s, UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": stamp, "source": self.source, "event": name, **fields}, default=str)
        as_json = os.environ.get("EOSIN_LOG") == "json"
        shown = line if as_json else printable(f"{self.source}  {event_text(name, fields)}")
        print(shown, file=sys.stderr, flush=True)
        with self._lock:
            self._lines.append(line)
            if now_s - self._flushed_s >= _FLUSH_EVERY_S or len(self._lines) >= _EVENTS_PER_PART:
                self._flush()

    def progress(self, done: int, total: int, unit: str, **fields: Any) -> None:
        """Record how far the step has come."""
        self.event("progress", done=done, total=total, unit=unit, **fields)

    def attach(self, key: str, data: bytes) -> None:
        """Put a file that belongs to the log into the run; said once if it fails, and never in the way."""
        if self._store is None or self._attach_failed:
            return
        try:
            self._store.put(key, data)
        except Exception as error:
            self._attach_failed = True
            print(f"{self.source}: {key} cannot be written to {self._store.uri}: {error}", file=sys.stderr)

    def flush(self) -> None:
        """Publish the events that are still in memory."""
        with self._lock:
            self._again_s = 0.0
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def _flush(self) -> None:
        self._flushed_s = self._clock()
        if self._store is None or not self._lines or self._flushed_s < self._again_s:
            return
        try:
            self._store.put(RunLayout.log(self.source, self._part), ("\n".join(self._lines) + "\n").encode())
        except Exception as error:  # a log must never be what stops a run
            self._again_s = self._clock() + _AFTER_FAILURE_S
            if not self._told_failed:
                self._told_failed = True
                print(
                    f"{self.source}: the log cannot be written to {self._store.uri}: {error}", file=sys.stderr
                )
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
        text = record.getMessage()
        text = text if len(text) <= _WARNING_CHARS else f"{text[: _WARNING_CHARS - 1]}…"
        RunLog(record.name.split(".")[1]).event("warning", detail=text)


def show_warnings() -> None:
    """Let warnings of eosin's modules appear as events do. Called once a process; again is harmless."""
    logger = logging.getLogger("eosin")
    if not any(isinstance(handler, _Warnings) for handler in logger.handlers):
        logger.addHandler(_Warnings(logging.WARNING))
        logger.propagate = False


def printable(text: str) -> str:
    """`text` on one line: names come from buckets, and may hold line breaks and a terminal's controls."""
    # An error and its hint stand on two lines, the second indented.
    text = text.replace("\n  ", " → ")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_USABLE = "{num_ok:,} of {num_slides:,} slides can be used"
_TOLD_AS = {
    "shard-scanned": f"shard {{shard}} of {{num_shards}} (from 0): {_USABLE}",
    "snapshot": f"{_USABLE}; snapshot {{snapshot_id}}",
    "report": "{uri}: {ok} evaluations ok, {not_ok} not; {verdict}",
    "slide-not-used": "{slide} is not used: {status}: {detail}",
}


def event_text(name: str, fields: dict[str, Any]) -> str:
    """An event of a log for a person: how far a step has come, else the event's name and what it tells."""
    if name == "step" and "loss" in fields:
        return step_line(fields)
    with contextlib.suppress(KeyError):  # what another eosin logged may tell less
        return _TOLD_AS[name].format(**fields)
    values = dict(fields)
    if name == "progress":
        name = f"{values.pop('done')}/{values.pop('total')} {values.pop('unit')}"
    return " · ".join([name, *(_value_text(key, value) for key, value in values.items())])


_SHOWN_AS = {
    "images_per_s": "{:.3g} images/s", "patches_per_s": "{:.3g} patches/s", "mfu": "MFU {:.1%}",
    "data_wait_share": "data wait {:.0%}", "memory_gib": "{:.2f} GiB", "world_size": "world of {}",
    "grad_norm": "gradient {:.3g}", "teacher_entropy": "entropy {:.3g}", "rankme": "RankMe {:.3g}",
    "feature_center_norm": "centre {:.3f}", "center_norm": "logit centre {:.3g}",
    "patch_locality": "patch locality {:.2f}", "patch_class_cosine": "patch-class cosine {:.2f}",
    "checkpoint_age_s": "checkpoint {:.0f} s old",
    "ok": "{:,} usable",
}  # fmt: skip


def step_line(fields: dict[str, Any]) -> str:
    """A training step's event as one line: position, losses, rate, speed, health, time left."""
    values = dict(fields)
    parts = [f"step {values.pop('step')}/{values.pop('num_steps', '?')}"]
    eta_s, _ = values.pop("eta_s", None), values.pop("details", None)
    parts += [_value_text(name, value) for name, value in values.items()]
    if isinstance(eta_s, int | float):
        parts.append(f"{_clock(eta_s)} left")
    return " · ".join(parts)


def _value_text(name: str, value: Any) -> str:
    form = _SHOWN_AS.get(name)
    return form.format(value) if form and value is not None else f"{name} {short_text(value)}"


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d} h" if hours else f"{rest // 60}:{rest % 60:02d} min"


def short_text(value: Any) -> str:
    """A value of an event for a person: four significant digits of a fraction."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
