"""A worker never outlives its agent, an agent goes when it is told, memory that ran out is counted."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eosin.training.elastic.processes import AGENT_PID, oom_kills

WORKER = "from eosin.training.elastic.processes import die_with_agent; die_with_agent(); print('works')"


def begin(agent_pid: int | None) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != AGENT_PID}
    env |= {} if agent_pid is None else {AGENT_PID: str(agent_pid)}
    return subprocess.run([sys.executable, "-c", WORKER], env=env, capture_output=True, text=True)


def test_a_worker_of_a_living_agent_works() -> None:
    assert begin(os.getpid()).stdout == "works\n"
    assert begin(None).stdout == "works\n"


def test_a_worker_whose_agent_has_gone_ends_at_once() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    ended = begin(gone.pid)
    assert (ended.returncode, ended.stdout) == (1, "")


# An agent that waits for a second node that never comes, in a PID namespace of its own: process 1, for which
# the kernel drops every signal without a handler.
AGENT = [
    sys.executable, "-m", "eosin.training.elastic.agent", "--nnodes=2:2", "--nproc-per-node=1",
    "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--rdzv-id=test", "--rdzv-conf=join_timeout=600",
    "--local-addr=127.0.0.1", "-m", "nothing",
]  # fmt: skip


def has_namespaces() -> bool:
    command = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return shutil.which("unshare") is not None and not subprocess.run(command, capture_output=True).returncode


@pytest.fixture
def joining(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    if not has_namespaces():
        pytest.skip("a PID namespace needs root and `unshare`")
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *AGENT]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


def process_1_of(unshare: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        for child in children.read_text().split():
            if b"elastic.agent" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        time.sleep(0.02)
    raise AssertionError("the agent did not start")


def handles_sigterm(pid: int) -> bool:
    (caught,) = re.findall(r"SigCgt:\t(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


# 0 s: before torch, whose import takes seconds; 25 s: it waits for the other node.
@pytest.mark.parametrize("after_s", [0, 25.0])
def test_an_agent_that_is_process_1_goes_as_soon_as_it_is_told(
    joining: subprocess.Popen[str], after_s: float
) -> None:
    agent = process_1_of(joining)
    while not handles_sigterm(agent):  # the interpreter itself must have begun
        time.sleep(0.005)
    assert "libtorch" not in Path(f"/proc/{agent}/maps").read_text()
    time.sleep(after_s)
    assert joining.poll() is None, joining.stderr.read() if joining.stderr else ""
    began_s = time.monotonic()
    os.kill(agent, signal.SIGTERM)
    assert joining.wait(20) == 75
    assert time.monotonic() - began_s < 10


V2 = "low 0\nhigh 12\nmax 3\noom 3\noom_kill 2\noom_group_kill 0\n"
V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"


@pytest.mark.parametrize(
    ("own", "file", "text", "found"),
    [
        ("0::/pods/a", "pods/a/memory.events", V2, 2),
        ("0::/", "memory.events", V2, 2),
        ("0::/../..", "memory.events", V2, 2),
        ("7:cpu:/x\n4:memory:/pods/a\n0::/", "memory/pods/a/memory.oom_control", V1, 5),
        ("4:memory:/gone", "memory/memory.oom_control", V1, 5),
        ("0::/", "memory.events", "nothing of that kind", None),
        ("", "other", "", None),
    ],
)
def test_kills_for_memory_are_read_where_the_kernel_tells_of_them(
    tmp_path: Path, own: str, file: str, text: str, found: int | None
) -> None:
    (tmp_path / "root" / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "root" / file).write_text(text)
    (tmp_path / "cgroup").write_text(own)
    assert oom_kills(tmp_path / "root", tmp_path / "cgroup") == found


def test_a_real_kill_for_memory_is_counted() -> None:
    group = Path("/sys/fs/cgroup/memory") / f"eosin-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(64 * 2**20))
    except OSError:
        pytest.skip("a memory cgroup of version 1 that this process may make")
    own = group.parent.parent / "memory" / group.name
    code = f"import os; open('{own}/cgroup.procs', 'w').write(str(os.getpid())); x = bytearray(10**9)"
    try:
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
        text = f"4:memory:/{group.name}"
        place = group.parent.parent
        cgroup = Path(f"/tmp/eosin-test-cgroup-{os.getpid()}")
        cgroup.write_text(text)
        assert oom_kills(place, cgroup) == 1
        cgroup.unlink()
    finally:
        group.rmdir()
