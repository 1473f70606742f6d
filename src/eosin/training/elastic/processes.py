"""The processes of one training: launcher, agent, workers; their children, their end, their memory."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from eosin.errors import EXIT_TRANSIENT
from eosin.process import die_with_parent

PARENT_PID = "EOSIN_PARENT_PID"
AGENT_PID = "EOSIN_AGENT_PID"
_POLL_S = 0.02
# Of the time an agent has to go: a snapshot first, the rest for the workers to publish it.
_SNAPSHOT_SHARE = 0.2
_CGROUP = Path("/sys/fs/cgroup")


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


def kill_all(pids: list[int], number: signal.Signals = signal.SIGKILL) -> None:
    """Send the signal `number` to each of `pids` that is still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


class Departure:
    """The way an agent goes when SIGTERM tells it to, from its first line on and wherever its main thread is.

    An agent is process 1 of its container, for which the kernel drops a signal that has no handler; and while
    it waits for the others in a call that returns no control, Python runs none. So the kernel's handler
    writes to a pipe and a thread that reads it does the work: a snapshot first (`prepare`), then SIGTERM for
    the workers, SIGKILL for those that do not go, and exit code 75.
    """

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.timeout_s = 30.0
        """How long all of it may take."""
        self.prepare: Callable[[float], object] | None = None
        """Called with a number of seconds, before workers are told to go."""

    def on_sigterm(self) -> None:
        """Handle SIGTERM in this process from now on; in the main thread."""
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        threading.Thread(target=self._wait, args=(read_end,), name="eosin-departure", daemon=True).start()

    def _wait(self, read_end: int) -> None:
        while signal.SIGTERM not in os.read(read_end, 64):
            continue
        self.has_begun.set()
        try:
            self._go(time.monotonic() + self.timeout_s)
        finally:
            os._exit(EXIT_TRANSIENT)

    def _go(self, deadline_s: float) -> None:
        if _living_children() and self.prepare is not None:
            self.prepare(_SNAPSHOT_SHARE * self.timeout_s)
        kill_all(_living_children(), signal.SIGTERM)
        while _living_children() and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        kill_all(_living_children())


def _living_children() -> list[int]:
    """Children of this process that have not ended, whether or not anybody has asked for their exit code."""
    return [pid for pid in children_of(os.getpid()) if not _has_ended(pid)]


def _has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return True


def oom_kills(root: Path = _CGROUP, own: Path = Path("/proc/self/cgroup")) -> int | None:
    """How many processes of this container the kernel has killed for memory; None where it does not tell.

    Reads `memory.events` of cgroup v2 or `memory.oom_control` of v1, at this process's place under `root` or,
    as a container with a cgroup namespace sees it, at `root` itself.
    """
    for path in _memory_files(root, own):
        try:
            fields = dict(line.split() for line in path.read_text().splitlines())
            return int(fields["oom_kill"])
        except (OSError, KeyError, ValueError):
            continue
    return None


def _memory_files(root: Path, own: Path) -> list[Path]:
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        lines = []
    places = {names: path.lstrip("/") for _, names, path in (line for line in lines if len(line) == 3)}
    v1 = next((path for names, path in places.items() if "memory" in names.split(",")), "")
    return [
        root / places.get("", "") / "memory.events",
        root / "memory.events",
        root / "memory" / v1 / "memory.oom_control",
        root / "memory" / "memory.oom_control",
    ]
