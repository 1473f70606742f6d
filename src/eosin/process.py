"""Processes that do not outlive the one they work for, and owners that give back what they hold."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

_PR_SET_PDEATHSIG = 1


def die_with_parent(expected_parent: int | None = None) -> None:
    """Let the kernel kill this process when the thread that started it ends (Linux; elsewhere nothing).

    `expected_parent`: exit at once where the parent is another already, since it died before the call.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if expected_parent is not None and os.getppid() != expected_parent:
        os._exit(1)


@contextmanager
def sigterm_raises(kind: type[BaseException]) -> Iterator[None]:
    """SIGTERM as an exception, so that what blocks ends at once; does nothing off the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise kind

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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


class Closing:
    """Closed at the end of its `with` block, whatever happened in it."""

    def close(self) -> None:
        """Give back what is held."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
