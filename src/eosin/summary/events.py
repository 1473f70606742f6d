"""The JSON lines every step left under `logs/`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from eosin.layout import RunLayout
from eosin.storage import Store

# The report must not depend on how often it was written.
_OWN_LOG = "summarize"


@dataclass(frozen=True)
class Event:
    """One line. `time_s`: seconds since 1970."""

    time_s: float
    source: str
    name: str
    fields: dict[str, Any]

    def number(self, name: str) -> float | None:
        """A numeric field; None where it is absent or not a number."""
        value = self.fields.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def date_of(time_s: float) -> str:
    """ISO date and time in UTC, to the second."""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds")


def read_events(store: Store) -> tuple[Event, ...]:
    """Every event of the run by time; a line that is not one (cut by a kill) is passed over."""
    keys = [info.key for info in store.list(RunLayout.LOGS) if info.key.endswith(".jsonl")]
    wanted = [key for key in keys if not key.startswith(RunLayout.logs(_OWN_LOG))]
    events = [event for key in wanted for event in _parse(store.get(key).splitlines())]
    return tuple(sorted(events, key=lambda event: event.time_s))


def _parse(lines: Iterable[bytes]) -> Iterable[Event]:
    for line in lines:
        try:
            fields = json.loads(line)
            time_s = datetime.fromisoformat(fields.pop("time")).timestamp()
            yield Event(time_s, str(fields.pop("source")), str(fields.pop("event")), fields)
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
