"""Reports of workers to their agent: why they ended, and from which step they began."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from eosin.errors import EosinError, PermanentError, TransientError, UserError, describe

FAILURES_DIR = "EOSIN_TRAIN_FAILURES"
Kind = Literal["user", "permanent", "superseded", "transient", "crash"]
_ORDER: tuple[Kind, ...] = ("user", "permanent", "superseded", "crash", "transient")


class Superseded(TransientError):
    """Another world has taken this run over; this one must end, and not start its workers again."""


@dataclass(frozen=True)
class Failure:
    """Why a worker ended."""

    kind: Kind
    message: str
    hint: str
    rank: int
    time_s: float
    trace: str = ""

    @property
    def fatal(self) -> bool:
        """No restart of the workers mends it."""
        return self.kind in ("user", "permanent", "superseded")

    def to_error(self) -> EosinError:
        """As the error of its kind."""
        if self.kind == "user":
            return UserError(self.message, hint=self.hint)
        if self.kind in ("transient", "superseded"):
            return TransientError(self.message, hint=self.hint)
        return PermanentError(self.message, hint=self.hint)


@dataclass(frozen=True)
class Start:
    """A worker of local rank 0 began at this committed step."""

    step: int
    time_s: float


def report_failure(error: BaseException, rank: int) -> None:
    """Write `error` into the folder the agent named in the environment, if it did."""
    message, hint = (error.message, error.hint) if isinstance(error, EosinError) else (describe(error), "")
    trace = "" if isinstance(error, EosinError) else "".join(traceback.format_exception(error))
    failure = Failure(_kind(error), message, hint, rank, time.time(), trace)
    _write(f"failure-{os.getpid()}", asdict(failure))


def report_start(step: int) -> None:
    """Tell the agent from which committed step its workers begin; one of a node speaks for all."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        _write(f"start-{os.getpid()}", asdict(Start(step, time.time())))


def read_failures(folder: Path) -> list[Failure]:
    """All failures in `folder`, the most telling first: by kind, those that name patches, then by time."""
    found = [Failure(**json.loads(path.read_text())) for path in folder.glob("failure-*.json")]
    return sorted(found, key=lambda f: (_ORDER.index(f.kind), "patches:" not in f.message, f.time_s))


def read_starts(folder: Path) -> list[Start]:
    """All starts in `folder`, by time."""
    found = [Start(**json.loads(path.read_text())) for path in folder.glob("start-*.json")]
    return sorted(found, key=lambda start: start.time_s)


def starts_without_progress(starts: list[Start]) -> int:
    """How many of the last starts began at the same step as the very last one."""
    count = 0
    for start in reversed(starts):
        if start.step != starts[-1].step:
            break
        count += 1
    return count


def last_transient(failures: list[Failure], starts: list[Start]) -> Failure | None:
    """The newest transient failure of the last round of workers, if there was one.

    Where one rank cannot reach the store, the others crash for want of it: its word counts.
    """
    since_s = starts[-2].time_s if len(starts) > 1 else 0.0
    found = [f for f in failures if f.kind == "transient" and f.time_s >= since_s]
    return max(found, key=lambda failure: failure.time_s, default=None)


def transient_rounds(failures: list[Failure], starts: list[Start]) -> int:
    """How often workers failed with a transient error, one after another, before they could start."""
    since_s = starts[-1].time_s if starts else 0.0
    ranks = Counter(f.rank for f in failures if f.kind == "transient" and f.time_s >= since_s)
    return max(ranks.values(), default=0)


def _kind(error: BaseException) -> Kind:
    if isinstance(error, UserError):
        return "user"
    if isinstance(error, Superseded):
        return "superseded"
    if isinstance(error, TransientError):
        return "transient"
    return "permanent" if isinstance(error, PermanentError) else "crash"


def _write(name: str, content: dict[str, object]) -> None:
    folder = os.environ.get(FAILURES_DIR)
    if not folder:
        return
    path = Path(folder) / f"{name}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content))
    part.replace(path)
