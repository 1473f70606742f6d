"""Heartbeats of workers: files touched every step, by whose age an agent finds workers that hang."""

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
