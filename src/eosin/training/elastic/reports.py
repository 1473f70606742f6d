"""Files by which an agent and its workers tell each other: rounds, starts, ends, heartbeats, requests.

A worker touches its heartbeat every step; by its age an agent finds workers that hang. A node that waits to
join and an agent that is told to go can both wait for the end of a step: the agent leaves a request, its
workers tell the other ranks with the numbers of the next step, all copy the state after it, and each node's
workers answer once their copy is kept.
"""

import json
import os
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

from eosin.errors import EosinError, PermanentError, TransientError, UserError, describe
from eosin.training.elastic.processes import children_of, kill_all

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


@dataclass(frozen=True)
class Round:
    """The workers of this node were started."""

    time_s: float
    is_planned: bool
    """For a change of the world, not because workers of before had died."""


@dataclass(frozen=True)
class WorkerExit:
    """A worker ended with another code than 0; negative: of that signal."""

    code: int
    time_s: float


R = TypeVar("R", Failure, Start, Round, WorkerExit)
_FILES: dict[type, str] = {Failure: "failure", Start: "start", Round: "round", WorkerExit: "exit"}
"""What the names of the files of each kind of report begin with."""


def read_reports(folder: Path, kind: type[R]) -> list[R]:
    """All reports of `kind` in `folder`, by time."""
    found = [kind(**json.loads(path.read_text())) for path in folder.glob(f"{_FILES[kind]}-*.json")]
    return sorted(found, key=lambda each: each.time_s)


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
    return sorted(
        read_reports(folder, Failure),
        key=lambda f: (_ORDER.index(f.kind), "patches:" not in f.message, f.time_s),
    )


def report_round(folder: Path, *, is_planned: bool) -> None:
    """In an agent, when its workers are about to start."""
    found = Round(time.time(), is_planned)
    _write_into(folder, f"round-{time.time_ns()}", asdict(found))


def report_exit(folder: Path, code: int, pid: int) -> None:
    """In an agent: worker `pid` ended with `code`."""
    _write_into(folder, f"exit-{pid}-{time.time_ns()}", asdict(WorkerExit(code, time.time())))


def rounds_without_progress(rounds: list[Round], starts: list[Start]) -> list[Round]:
    """The last rounds that began no later step than the round before them, first one first.

    A round that died before it could say where it starts has made no progress. Planned ones are left out.
    """
    ends_s = [*(each.time_s for each in rounds), float("inf")][1:]
    found: list[Round] = []
    step: int | None = None
    for each, end_s in reversed(list(zip(rounds, ends_s, strict=True))):
        own = next((start.step for start in starts if each.time_s <= start.time_s < end_s), None)
        if own is not None and step is not None and own != step:
            break
        step = step if own is None else own
        if not each.is_planned:
            found.append(each)
    return found[::-1]


def last_transient(failures: list[Failure], rounds: list[Round]) -> Failure | None:
    """The newest transient failure of the last round of workers, if there was one.

    Where one rank cannot reach the store, the others crash for want of it: its word counts.
    """
    since_s = rounds[-2].time_s if len(rounds) > 1 else 0.0
    found = [f for f in failures if f.kind == "transient" and f.time_s >= since_s]
    return max(found, key=lambda failure: failure.time_s, default=None)


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
    if folder:
        _write_into(Path(folder), name, content)


def _write_into(folder: Path, name: str, content: dict[str, object]) -> None:
    path = folder / f"{name}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content))
    part.replace(path)


HEARTBEAT = "heartbeat-"
"""What the names of the files begin with; a process id follows."""


class Heartbeat:
    """A worker's sign of life for its agent; without an agent it is nothing."""

    def __init__(self) -> None:
        folder = os.environ.get(FAILURES_DIR)
        self._path = Path(folder) / f"{HEARTBEAT}{os.getpid()}" if folder else None

    def beat(self) -> None:
        """A step was finished."""
        if self._path is not None:
            self._path.touch()
            os.utime(self._path, (time.monotonic(),) * 2)  # a clock that is set makes no worker hang

    def stop(self) -> None:
        """All steps are taken: what comes may last as long as it likes."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def watch_for_hangs(folder: Path, timeout_s: float) -> None:
    """In an agent: kill its workers whenever one of them has finished no step for `timeout_s`.

    Before its first step a worker may take as long as it likes. torchrun starts killed workers again.
    """

    def watch() -> None:
        while True:
            time.sleep(min(1.0, timeout_s / 4))
            kill_hanging(folder, children_of(os.getpid()), timeout_s)

    threading.Thread(target=watch, name="eosin-hang", daemon=True).start()


def kill_hanging(folder: Path, workers: list[int], timeout_s: float) -> bool:
    """Kill all of `workers` where one has a heartbeat older than `timeout_s`; whether that was so."""
    hanging = [pid for pid in workers if _age_s(folder / f"{HEARTBEAT}{pid}") > timeout_s]
    if not hanging:
        return False
    print(f"agent: worker {hanging[0]} has finished no step for {timeout_s:g} s; its node's workers are"
          " started again", file=sys.stderr, flush=True)  # fmt: skip
    for pid in workers:
        (folder / f"{HEARTBEAT}{pid}").unlink(missing_ok=True)
    kill_all(workers)
    return True


def _age_s(path: Path) -> float:
    try:
        return time.monotonic() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


_REQUEST = "snapshot-request"
_KEPT = "snapshot-kept"
_POLL_S = 0.02
# Workers that answered are stopped by their agent at once; should it not, training goes on.
_PAUSE_S = 10.0


class SnapshotRequests:
    """An agent's side: a request and its answer."""

    def __init__(self, folder: Path, patience_s: float) -> None:
        """`patience_s`: how long an answer is waited for, longer than any step should take."""
        self._folder = folder
        self._patience_s = patience_s
        self._asked_s: float | None = None

    def is_answered(self) -> bool:
        """Ask, if that has not been done since `forget`; whether there is nothing to wait for any more:
        an answer, no worker that has finished a step yet, or no patience left."""
        if not any(self._folder.glob(f"{HEARTBEAT}*")):
            return True
        if self._asked_s is None:
            self._asked_s = time.monotonic()
            (self._folder / _REQUEST).touch()
        late = time.monotonic() - self._asked_s > self._patience_s
        return late or (self._folder / _KEPT).exists()

    def wait(self, timeout_s: float) -> bool:
        """Ask and wait for at most `timeout_s`; whether there was an answer in time."""
        deadline_s = time.monotonic() + timeout_s
        while not self.is_answered():
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_POLL_S)
        return True

    def forget(self) -> None:
        """Before workers begin: what their predecessors were asked is over, and so are their heartbeats."""
        self.withdraw()
        for path in self._folder.glob(f"{HEARTBEAT}*"):
            path.unlink(missing_ok=True)

    def withdraw(self) -> None:
        """Nobody waits any more: for who waits next the answer would be too old."""
        self._asked_s = None
        (self._folder / _REQUEST).unlink(missing_ok=True)
        (self._folder / _KEPT).unlink(missing_ok=True)


class SnapshotAnswers:
    """A worker's side; without an agent nothing is ever asked."""

    def __init__(self) -> None:
        folder = os.environ.get(FAILURES_DIR)
        self._folder = Path(folder) if folder else None

    def is_asked(self) -> bool:
        """Whether the agent wants a snapshot of the next step boundary."""
        if self._folder is None:
            return False
        return (self._folder / _REQUEST).exists() and not (self._folder / _KEPT).exists()

    def answer(self) -> None:
        """The snapshot is kept. Where the agent asked for it, it stops this process in a moment: a step
        begun now would be lost."""
        if self._folder is None:
            return
        asked = (self._folder / _REQUEST).exists()
        if os.environ.get("LOCAL_RANK", "0") == "0":
            (self._folder / _KEPT).touch()
        if asked:
            time.sleep(_PAUSE_S)
