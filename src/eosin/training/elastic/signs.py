"""Files by which an agent and its workers tell each other of steps: heartbeats, and snapshots asked for.

A worker touches its heartbeat every step; by its age an agent finds workers that hang. A node that waits to
join and an agent that is told to go can both wait for the end of a step: the agent leaves a request, its
workers tell the other ranks with the numbers of the next step, all copy the state after it, and each node's
workers answer once their copy is kept.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from eosin.training.elastic.failures import FAILURES_DIR
from eosin.training.elastic.processes import children_of, kill_all

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
        return time.time() - path.stat().st_mtime
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
        self._asked_s = None
        for path in (self._folder / _REQUEST, self._folder / _KEPT, *self._folder.glob(f"{HEARTBEAT}*")):
            path.unlink(missing_ok=True)


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
