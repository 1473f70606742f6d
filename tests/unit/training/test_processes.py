"""A worker never outlives its agent, not even one that died before the worker began."""

from __future__ import annotations

import os
import subprocess
import sys

from eosin.training.elastic.processes import AGENT_PID

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
