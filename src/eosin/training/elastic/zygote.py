"""A process that has imported all that a worker needs, and forks workers: a start costs no imports.

`python -m eosin.training.elastic.zygote FD MODULE...`, begun by an agent, which holds the other end of
the socket FD. It computes nothing, so what a fork cannot carry over is not there: threads, sockets, a
device. It looks whether that is so, and says no where it is not; the agent then starts plain processes.

One exchange: the agent sends a length with the descriptors of a gate, standard output and standard error,
then a JSON object (`module`, `arguments`, `env`); the answer is the worker's process id. The worker is the
agent's own child, in a session of its own, and begins once a byte comes through the gate: an agent that did
not hear the answer has no worker that it does not know of.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import runpy
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from eosin.process import die_with_parent

LENGTH = struct.Struct(">Q")
NUM_DESCRIPTORS = 3
FIT = b"fit\n"
# Opened only once a run is there; a worker would import them on its way to the first step.
PRELOADED = (
    "torch.distributed.tensor",
    "eosin.training.worker",
    "eosin.training.checkpoints.resharding",
    "eosin.index.snapshot",
    "eosin.patches.decoding.quarantine",
    "eosin.patches.sampling.sampler",
    "eosin.patches.stream",
    "eosin.patches.sets.training_set",
)
# The last argument of a zygote: here a worker writes its own command line.
ROOM = " " * 2048
# Field 48 of /proc/PID/stat, counted from the one after the name.
_ARG_START = 45
_ADOPTION_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Order:
    """What a worker shall be. `gate`, `stdout`, `stderr`: descriptors."""

    module: str
    arguments: list[str]
    env: dict[str, str]
    gate: int
    stdout: int
    stderr: int


def main(arguments: list[str]) -> None:
    """Serve the agent until it goes; in a worker, become it. Raises what the worker's module raises."""
    agent_pid = os.getppid()
    die_with_parent(agent_pid)
    control = socket.socket(fileno=int(arguments[0]))
    control.set_inheritable(False)
    unfit = _import(arguments[1:-1]) or unfit_to_fork(control.fileno())
    control.sendall(f"{unfit}\n".encode() if unfit else FIT)
    order = None if unfit else _serve(control)
    if order is not None:
        control.close()
        _become(order, agent_pid)


def _import(modules: list[str]) -> str:
    """Import `modules`; why that is not possible, empty where it is."""
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # a worker meets it too, and says it better
            return f"{name} cannot be imported: {error}"
    return ""


def unfit_to_fork(control: int) -> str:
    """What this process has that a fork would not carry over; empty where nothing is in the way."""
    num_threads = len(list(Path("/proc/self/task").iterdir()))
    if num_threads != 1:
        return f"{num_threads} threads run"
    for path in Path("/proc/self/fd").iterdir():
        try:
            target = str(path.readlink())
        except FileNotFoundError:  # that of the listing itself
            continue
        opened = target.startswith(("socket:", "/dev/nvidia"))
        if opened and int(path.name) not in (0, 1, 2, control):
            return f"{target} is open"
    return ""


def _serve(control: socket.socket) -> Order | None:
    """Fork a worker an order. In the worker its order is returned; here None, once the agent has gone."""
    while (order := _receive(control)) is not None:
        read_end, write_end = os.pipe()
        between = os.fork()
        if not between:
            os.close(read_end)
            # Whoever loses its parent is adopted by the agent, which asked the kernel for it.
            if os.fork():
                os._exit(0)
            os.setsid()
            os.write(write_end, b"%d" % os.getpid())
            os.close(write_end)
            return order
        os.close(write_end)
        os.waitpid(between, 0)
        control.sendall(os.read(read_end, 32) + b"\n")
        for descriptor in (read_end, order.gate, order.stdout, order.stderr):
            os.close(descriptor)
    return None


def _receive(control: socket.socket) -> Order | None:
    head, descriptors, _, _ = socket.recv_fds(control, LENGTH.size, NUM_DESCRIPTORS)
    if len(head) < LENGTH.size or len(descriptors) != NUM_DESCRIPTORS:
        return None
    (length,) = LENGTH.unpack(head)
    body = bytearray()
    while len(body) < length:
        more = control.recv(length - len(body))
        if not more:
            return None
        body += more
    gate, stdout, stderr = descriptors
    return Order(**json.loads(body), gate=gate, stdout=stdout, stderr=stderr)


def _become(order: Order, agent_pid: int) -> None:
    """Run the worker's module as `python -m` would, once the agent knows of this process."""
    deadline_s = time.monotonic() + _ADOPTION_TIMEOUT_S
    while os.getppid() != agent_pid and time.monotonic() < deadline_s:
        time.sleep(0.001)
    die_with_parent(agent_pid)
    if not os.read(order.gate, 1):
        os._exit(1)
    os.close(order.gate)
    for source, target in ((order.stdout, 1), (order.stderr, 2)):
        os.dup2(source, target)
        os.close(source)
    show_command([sys.executable, "-m", order.module, *order.arguments])
    os.environ.clear()
    os.environ.update(order.env)
    # As `python -m`, which runs the module anew beside what others import of it.
    sys.modules.pop(order.module, None)
    sys.argv = [order.module, *order.arguments]
    runpy.run_module(order.module, run_name="__main__", alter_sys=True)


def show_command(command: list[str]) -> None:
    """Let `ps` and whoever looks for a process by its command line see `command`, as far as there is room."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[_ARG_START]), int(fields[_ARG_START + 1])
    text = b"\0".join(os.fsencode(part) for part in command)[: end - start - 1]
    if 0 < start < end:
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, text, len(text))


if __name__ == "__main__":
    main(sys.argv[1:])
