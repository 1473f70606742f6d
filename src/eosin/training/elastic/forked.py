"""Workers that an agent has forked from a process with everything imported, instead of started from nothing.

A start costs seconds of imports, at every membership change, on every node. Where forking is not possible
(another system, `EOSIN_COLD_WORKERS=1`, a zygote that is unfit or has died) processes are started as ever.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

from eosin.training.elastic.zygote import FIT, LENGTH, PRELOADED, ROOM

COLD = "EOSIN_COLD_WORKERS"
# Imports on a busy machine; until then the agent does not join, since that would stop the others.
_READY_TIMEOUT_S = 180.0
_FORK_TIMEOUT_S = 30.0
# Threads of these libraries would begin with their import. A worker sets its number of threads itself.
_NO_THREADS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
# Descriptor and process id of a zygote that outlives an exec of its agent.
_HANDED_OVER = "EOSIN_ZYGOTE"
# One that dies again and again would cost more than it saves.
_LIVES = 3
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.02


class CannotFork(Exception):
    """Why the zygote gave no worker."""


class ForkedWorker:
    """A child of this process that it did not start itself, with what torchrun asks of a `Popen`."""

    def __init__(self, pid: int, args: Sequence[str]) -> None:
        self.pid = pid
        self.args = list(args)
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        with self._lock:
            if self.returncode is None:
                try:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:  # reaped by somebody else: how it ended is not known
                    pid, status = self.pid, 1 << 8
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        deadline_s = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(_POLL_S)
        return code

    def send_signal(self, number: int) -> None:
        """Send `number` unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Zygote:
    """The agent's end. To be begun from the main thread, since the zygote dies with the thread."""

    def __init__(self, preloaded: Sequence[str] = PRELOADED) -> None:
        self._preloaded = tuple(preloaded)
        self._begin()

    def _begin(self) -> None:
        self._control, theirs = socket.socketpair()
        command = [
            sys.executable,
            "-m",
            "eosin.training.elastic.zygote",
            str(theirs.fileno()),
            *self._preloaded,
            ROOM,
        ]
        self._process: subprocess.Popen[bytes] | ForkedWorker
        with theirs:
            self._process = subprocess.Popen(
                command, env=os.environ | _NO_THREADS, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        self._ready = False

    def renew(self) -> None:
        """Begin it anew, after it failed; it imports while this process goes on. From the main thread."""
        self.close()
        self._begin()

    def hand_over(self) -> int:
        """Leave it to the program that this process is about to become: `begin_zygote` finds it there.

        Its process id, which must then be spared; 0 where it is not ready, and is not handed over.
        """
        if not self._ready or self._process.poll() is not None:
            return 0
        self._control.set_inheritable(True)
        os.environ[_HANDED_OVER] = f"{self._control.fileno()}:{self.pid}"
        return self.pid

    @classmethod
    def handed_over(cls, descriptor: int, pid: int) -> Zygote:
        """The one that the program before this one, in the same process, had."""
        zygote = cls.__new__(cls)
        zygote._preloaded = PRELOADED
        zygote._control = socket.socket(fileno=descriptor)
        zygote._control.set_inheritable(False)
        zygote._process, zygote._ready = ForkedWorker(pid, []), True
        return zygote

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self, timeout_s: float = _READY_TIMEOUT_S) -> None:
        """Raises `CannotFork` where the zygote cannot be forked or is not there in time."""
        if not self._ready:
            answer = self._line(timeout_s)
            if answer != FIT:
                raise CannotFork(answer.decode(errors="replace").strip() or "its process ended")
            self._ready = True

    def fork(
        self, module: str, arguments: Sequence[str], env: dict[str, str], stdout: int = 1, stderr: int = 2
    ) -> ForkedWorker:
        """A child of this process that runs `python -m module arguments`. Raises `CannotFork`."""
        self.wait_until_ready()
        body = json.dumps({"module": module, "arguments": list(arguments), "env": env}).encode()
        gate, opener = os.pipe()
        try:
            with _adopting():
                head = LENGTH.pack(len(body))
                socket.send_fds(self._control, [head], [gate, stdout, stderr])
                self._control.sendall(body)
                pid = int(self._line(_FORK_TIMEOUT_S) or 0)
            if not _is_child(pid):
                raise CannotFork("the kernel did not make the worker a child of the agent")
            os.write(opener, b"1")
        except (OSError, ValueError) as error:
            raise CannotFork(str(error)) from error
        finally:
            os.close(gate)
            os.close(opener)
        return ForkedWorker(pid, [sys.executable, "-m", module, *arguments])

    def close(self) -> None:
        """End it; workers that it has forked stay."""
        self._control.close()
        self._process.kill()
        self._process.wait()

    def _line(self, timeout_s: float) -> bytes:
        """What it says up to the end of the line; less where it ends before. Raises `CannotFork` in time."""
        said, deadline_s = bytearray(), time.monotonic() + timeout_s
        while not said.endswith(b"\n"):
            if not select.select([self._control], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
                raise CannotFork(f"no answer within {timeout_s:g} s")
            more = self._control.recv(256)
            if not more:
                break
            said += more
        return bytes(said)


def begin_zygote() -> Zygote | None:
    """A zygote that imports while this process goes on; None where workers are not to be forked."""
    if sys.platform != "linux" or os.environ.get(COLD) == "1":
        return None
    descriptor, _, pid = os.environ.pop(_HANDED_OVER, "").partition(":")
    try:
        return Zygote.handed_over(int(descriptor), int(pid)) if pid else Zygote()
    except OSError as error:
        _say(str(error))
        return None


def fork_workers(zygote: Zygote) -> None:
    """From now on torchrun's workers in this process are forked from `zygote`; started, where it cannot.

    One that failed is begun anew, so that a later change of the world costs no imports again.
    """
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import (
        SubprocessHandler,
    )

    start = getattr(SubprocessHandler, "_popen", None)
    try:
        zygote.wait_until_ready()
    except CannotFork as error:
        start = None
        _say(str(error))
    if start is None:  # also another torch
        zygote.close()
        return
    plain, lives = start, [zygote] * _LIVES

    def popen(self: Any, args: tuple[str, ...], env: dict[str, str]) -> Any:
        module = _module_of(args)
        if module is None or not lives:
            return plain(self, args, env)
        try:
            return zygote.fork(
                module[0], module[1:], env, _descriptor(self._stdout, 1), _descriptor(self._stderr, 2)
            )
        except CannotFork as error:
            _say(str(error))
            lives.pop()
            worker = plain(self, args, env)
            _revive(zygote, lives)
            return worker

    SubprocessHandler._popen = popen  # type: ignore[method-assign]


def _revive(zygote: Zygote, lives: list[Zygote]) -> None:
    """Begin `zygote` anew if it has lives left and would live as long as this process."""
    if lives and threading.current_thread() is threading.main_thread():
        try:
            zygote.renew()
            return
        except OSError as error:
            _say(str(error))
    lives.clear()
    zygote.close()


def _module_of(args: Sequence[str]) -> list[str] | None:
    """Module and arguments of `PYTHON [-u] -m MODULE ...`; None for any other command."""
    rest = [a for place, a in enumerate(args) if not (place == 1 and a == "-u")]
    return list(rest[2:]) if rest[0] == sys.executable and rest[1:2] == ["-m"] and len(rest) > 2 else None


def _descriptor(file: IO[str] | None, otherwise: int) -> int:
    return otherwise if file is None else file.fileno()


@contextmanager
def _adopting() -> Iterator[None]:
    """Descendants that lose their parent meanwhile become children of this process, not of init."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _is_child(pid: int) -> bool:
    try:
        return pid > 0 and os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def _say(why: str) -> None:
    print(f"agent: workers are started, not forked: {why}", file=sys.stderr, flush=True)
