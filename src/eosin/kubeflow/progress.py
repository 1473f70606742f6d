"""Progress of a pipeline that runs on this machine, for a person: its steps, warnings and errors."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any, TextIO

from eosin.errors import EXIT_TRANSIENT
from eosin.observability import event_text, printable

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_STARTED = re.compile(r"Executing task '?([\w-]+)'?")
_RETRIED = re.compile(r"Task '?([\w-]+)'? failed .*Retrying in ([\d.]+)s")
_TITLES = {
    "plan": "plan · resolve the configuration",
    "index-shard": "index · read slide headers and find tissue",
    "index-snapshot": "index · publish the snapshot",
    "name-run": "name · the day's run",
    "plan-retrain": "plan · from the current model of the registry",
    "plan-study": "plan · one run for each value",
    "judge-new-slides": "gate · are there new slides enough",
    "say-unchanged": "stop · too few new slides",
    "pin-variants": "pin · every run reads the same slides",
    "list-evaluations": "choose · which teachers on which tasks",
    "promote": "promote · is it better than the current model",
    "study-report": "summarize · one report over all runs",
    "choose": "choose · the teacher and its tasks",
    "decode": "decode · held-out patches",
    "train": "train",
    "evaluate": "evaluate · models on tasks",
    "summarize": "summarize · write the report",
    "finish": "finish · leave nothing behind on a cluster",
}
_HEAD = ("time", "source", "event")
_NOISY_S = 5.0
_QUIET_EVENTS = {"index-pinned", "plan", "embeddings", "embeddings-shared"}


class PipelineView:
    """Reads the pipeline's output line by line. `error` holds the last error a step reported."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._step = ""
        self._last_progress_s: dict[str, float] = {}
        self._status_shown = False
        self.error: dict[str, Any] | None = None

    def feed(self, line: str) -> None:
        """Take one line of output."""
        text = without_colors(line).strip()
        started = _STARTED.search(text)
        retried = _RETRIED.search(text)
        if started:
            self._begin(started.group(1))
        elif retried:
            self._clear_status()
            self._write(f"  {retried.group(1)} failed; it is run again in {float(retried.group(2)):.0f} s\n")
        elif text.startswith("{") and text.endswith("}"):
            self._event(text)

    def finish(self) -> None:
        """End a line of progress that is being overwritten."""
        self._clear_status()

    def _begin(self, task: str) -> None:
        step = re.sub(r"-\d+$", "", task)
        if step == self._step:
            return
        self._step = step
        self._clear_status()
        self._write(f"▸ {_TITLES.get(step, step)}\n")

    def _event(self, text: str) -> None:
        try:
            event = json.loads(text)
        except ValueError:
            return
        name = event.get("event")
        if name == "error":
            self._error(event)
        elif name == "progress" or name == "step":
            self._progress(event)
        elif name is not None and name not in _QUIET_EVENTS:
            self._clear_status()
            self._write(f"  {_text(event)}\n")

    def _error(self, event: dict[str, Any]) -> None:
        self.error = event
        if event.get("exit_code") == EXIT_TRANSIENT:
            self._clear_status()
            self._write(f"  {printable(str(event.get('message')))}; trying again\n")

    def _progress(self, event: dict[str, Any]) -> None:
        source, now_s = str(event.get("source")), time.monotonic()
        line = _text(event)
        done = event.get("done", event.get("step"))
        last = done == event.get("total", event.get("num_steps"))
        if self._terminal:
            self._write(f"\r\x1b[2K  {line[:118]}")
            self._status_shown = True
        elif last or now_s - self._last_progress_s.get(source, -_NOISY_S) >= _NOISY_S:
            self._last_progress_s[source] = now_s
            self._write(f"  {line}\n")

    def _clear_status(self) -> None:
        if self._status_shown:
            self._write("\n")
            self._status_shown = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def without_colors(text: str) -> str:
    """`text` less the escape sequences with which kfp colours it."""
    return _ANSI.sub("", text)


def _text(event: dict[str, Any]) -> str:
    """An event with those of its fields that are numbers or short."""
    fields = {key: value for key, value in event.items() if key not in _HEAD and _brief(value)}
    return printable(f"{event.get('source')}: {event_text(str(event['event']), fields)}")


def _brief(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and len(value) <= 200)
