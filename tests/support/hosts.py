"""Several hosts on one machine: network namespaces with addresses of their own where root allows.

Elsewhere they are processes on the loopback network. A namespace is held by a process that dies with
this one, whatever it dies of, and goes with it: nothing has a name, nothing is left behind, and the
network of the machine itself is not touched.
"""

import os
import shutil
import signal
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from eosin.process import die_with_parent

_NETWORK = "10.213.7"


@dataclass
class Host:
    """One host. `prefix` is what a command begins with to run there."""

    address: str
    interface: str
    prefix: list[str] = field(default_factory=list)
    _port: str = ""
    _hub: list[str] = field(default_factory=list)

    @property
    def can_be_cut(self) -> bool:
        return bool(self._port)

    def cut(self) -> None:
        """Pull its cable. Skips the test where hosts share one network."""
        if not self.can_be_cut:
            pytest.skip("cutting a host off needs network namespaces, so root and `unshare`")
        _run([*self._hub, "ip", "link", "set", self._port, "down"])

    def heal(self) -> None:
        """Put the cable back."""
        _run([*self._hub, "ip", "link", "set", self._port, "up"])


class Hosts:
    """A switch and the hosts on it, gone when the block ends."""

    def __init__(self) -> None:
        self.namespaces = namespaces_work()
        self._stack = ExitStack()
        self._hub: list[str] = []
        self._count = 0

    def add(self) -> Host:
        """One more host; the first has the lowest address."""
        self._count += 1
        if not self.namespaces:
            return Host(f"127.0.0.{self._count + 1}", "lo")
        holder = self._hold()
        prefix, port = _enter(holder), f"port{self._count}"
        address = f"{_NETWORK}.{self._count}"
        _run([*self._hub, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0",
              "netns", str(holder.pid)])  # fmt: skip
        _run([*self._hub, "ip", "link", "set", port, "master", "switch", "up"])
        _run([*prefix, "ip", "address", "add", f"{address}/24", "dev", "eth0"])
        _run([*prefix, "ip", "link", "set", "lo", "up"])
        _run([*prefix, "ip", "link", "set", "eth0", "up"])
        return Host(address, "eth0", prefix, port, self._hub)

    def __enter__(self) -> Self:
        if self.namespaces:
            self._hub = _enter(self._hold())
            _run([*self._hub, "ip", "link", "add", "switch", "type", "bridge"])
            _run([*self._hub, "ip", "link", "set", "switch", "up"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _hold(self) -> subprocess.Popen[bytes]:
        holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], preexec_fn=die_with_parent)
        self._stack.callback(holder.wait)
        self._stack.callback(holder.kill)
        own = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{holder.pid}/ns/net").readlink() == own:
            if holder.poll() is not None:
                raise OSError("no network namespace can be made")
        return holder


def namespaces_work() -> bool:
    """Whether this process may make network namespaces and links between them."""
    if os.environ.get("EOSIN_TEST_HOSTS") == "processes":
        return False
    if any(shutil.which(tool) is None for tool in ("ip", "unshare", "nsenter")):
        return False
    attempt = ["unshare", "--net", "sh", "-c",
               "ip link add port1 type veth peer name port2 && ip link add switch type bridge"]  # fmt: skip
    return subprocess.run(attempt, capture_output=True, timeout=20, check=False).returncode == 0


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send `number` to all processes of the pod at once."""
    for pid in descendants(process.pid):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def descendants(pid: int) -> list[int]:
    """`pid` and all processes below it, from the top."""
    found, index = [pid], 0
    while index < len(found):
        for path in Path(f"/proc/{found[index]}/task").glob("*/children"):
            try:
                found += [int(child) for child in path.read_text().split()]
            except OSError:
                continue
        index += 1
    return found


def _enter(holder: subprocess.Popen[bytes]) -> list[str]:
    return ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=20)
