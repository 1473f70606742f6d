"""The processes of one training: launcher, agent, workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from eosin.process import die_with_parent

PARENT_PID = "EOSIN_PARENT_PID"
AGENT_PID = "EOSIN_AGENT_PID"


def die_with_agent() -> None:
    """In a worker, before anything slow is imported: end with the agent, also one that has gone already."""
    die_with_parent(int(os.environ[AGENT_PID]) if AGENT_PID in os.environ else None)


def children_of(pid: int) -> list[int]:
    """Process ids of the direct children of `pid`."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in path.read_text().split()]
        except OSError:  # the thread has just ended
            continue
    return found


def kill_all(pids: list[int]) -> None:
    """SIGKILL each of `pids` that is still there."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
