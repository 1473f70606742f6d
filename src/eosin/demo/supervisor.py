"""Supervisor of one program, which ends with the parent process, however that dies.

Started as a script (`python -I supervisor.py PARENT_PID COMMAND...`), so it imports the standard
library only and is up in milliseconds. Its session is its own: a signal to the parent's process group
does not reach it, the parent's death does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from types import FrameType

POLL_S = 0.1
GRACE_S = 4.0
_PR_SET_PDEATHSIG = 1


def main(parent_pid: int, command: list[str]) -> int:
    """Run `command` until it ends, the parent is gone or SIGTERM comes; returns its exit code."""
    stopping = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    # The lock that the caller handed over is inherited: it is held for as long as the program lives.
    child = subprocess.Popen(command, preexec_fn=_die_with_supervisor, close_fds=False)
    while child.poll() is None and not stopping and os.getppid() == parent_pid:
        time.sleep(POLL_S)
    return _end(child)


def _end(child: subprocess.Popen[bytes]) -> int:
    if child.poll() is None:
        child.terminate()
    try:
        return child.wait(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _die_with_supervisor() -> None:
    """In the child: be killed when the supervisor is (Linux; elsewhere its orderly end must do)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
