"""Processes that do not outlive the one they work for."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """In a child just forked: let the kernel kill it when its parent dies (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def follow(pid: int, *, poll_s: float = 0.5) -> None:
    """End this process when process `pid`, perhaps no direct parent, has gone."""

    def watch() -> None:
        while alive(pid):
            time.sleep(poll_s)
        os._exit(143)

    threading.Thread(target=watch, name=f"follow-{pid}", daemon=True).start()


def alive(pid: int) -> bool:
    """Whether there is a process `pid`, whoever owns it."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
