"""Processes that do not outlive whoever started them."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

PARENT_PID = "EOSIN_PARENT_PID"
AGENT_PID = "EOSIN_AGENT_PID"
_PR_SET_PDEATHSIG = 1


def die_with_parent(expected_parent: int | None = None) -> None:
    """Have the kernel kill this process when the thread that started it ends (Linux only).

    `expected_parent`: exit at once where the parent is another already, since it died before the call.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if expected_parent is not None and os.getppid() != expected_parent:
        os._exit(1)


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
