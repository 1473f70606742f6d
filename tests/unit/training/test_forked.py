"""A forked worker is a child like any other: its command, environment, output, exit code and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

from eosin.training.elastic import forked
from eosin.training.elastic.forked import COLD, CannotFork, ForkedWorker, Zygote, begin_zygote, fork_workers
from eosin.training.elastic.hang import kill_hanging
from eosin.training.elastic.processes import AGENT_PID
from eosin.training.elastic.zygote import unfit_to_fork

WORKER = """
import os, sys, time
from eosin.training.elastic.processes import die_with_agent
if __name__ == "__main__":
    die_with_agent()
    print(sys.argv[1:], os.environ.get("COLOUR"), os.environ.get("OMP_NUM_THREADS"), os.getpid(), flush=True)
    if sys.argv[1] == "sleep":
        time.sleep(600)
    if sys.argv[1] == "raise":
        raise ValueError("no such stain")
    sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    (tmp_path / "some_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv(AGENT_PID, str(os.getpid()))
    monkeypatch.setenv("COLOUR", "pink")
    return dict(os.environ)


@pytest.fixture
def zygote(environment: dict[str, str]) -> Iterator[Zygote]:
    found = Zygote(["json"])
    yield found
    found.close()


def fork(zygote: Zygote, log: Path, *arguments: str, **env: str) -> ForkedWorker:
    with log.open("w") as output:
        descriptor = output.fileno()
        return zygote.fork("some_worker", arguments, os.environ | env, descriptor, descriptor)


def test_it_has_its_own_arguments_environment_output_and_exit_code(zygote: Zygote, tmp_path: Path) -> None:
    codes = {}
    for code, colour in ((0, "blue"), (42, "red"), (75, "green")):
        log = tmp_path / f"{code}.log"
        worker = fork(zygote, log, str(code), "a täst", COLOUR=colour, OMP_NUM_THREADS="7")
        codes[code] = worker.wait(60)
        assert log.read_text() == f"['{code}', 'a täst'] {colour} 7 {worker.pid}\n"
    assert codes == {0: 0, 42: 42, 75: 75}


def test_what_it_raises_is_a_traceback_in_its_log_and_exit_code_1(zygote: Zygote, tmp_path: Path) -> None:
    worker = fork(zygote, tmp_path / "log", "raise")
    assert worker.wait(60) == 1
    assert "ValueError: no such stain" in (tmp_path / "log").read_text()


def test_it_is_found_by_its_command_and_killed_with_its_group(zygote: Zygote, tmp_path: Path) -> None:
    worker = fork(zygote, tmp_path / "log", "sleep", "s3://bucket/run")
    while not (tmp_path / "log").read_text():
        assert worker.poll() is None
    command = Path(f"/proc/{worker.pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    assert command == [part.encode() for part in worker.args]
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.05)
    os.killpg(worker.pid, signal.SIGTERM)
    assert worker.wait(60) == -signal.SIGTERM
    worker.send_signal(signal.SIGTERM)


AGENT = """
import os, sys, time
from eosin.training.elastic.forked import Zygote
zygote = Zygote(["json"])
with open(sys.argv[1], "w") as log:
    os.environ["EOSIN_AGENT_PID"] = str(os.getpid())
    worker = zygote.fork("some_worker", ["sleep"], dict(os.environ), log.fileno(), log.fileno())
print(worker.pid, zygote.pid, flush=True)
time.sleep(600)
"""


def test_it_and_the_zygote_end_with_an_agent_that_is_killed(
    environment: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", AGENT, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        pids = [int(pid) for pid in agent.stdout.readline().split()]
        while not (tmp_path / "log").read_text():
            assert agent.poll() is None
        agent.kill()
    assert len(pids) == 2
    for pid in pids:
        while Path(f"/proc/{pid}").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text():
            pass


def test_modules_that_cannot_be_imported_are_a_reason_not_to_fork(environment: dict[str, str]) -> None:
    zygote = Zygote(["json", "no_such_module"])
    with pytest.raises(CannotFork, match="no_such_module cannot be imported"):
        zygote.wait_until_ready()
    zygote.close()


def test_threads_and_sockets_are_a_reason_not_to_fork() -> None:
    probe = (
        "import socket, sys, threading\n"
        "from eosin.training.elastic.zygote import unfit_to_fork\n"
        "print(unfit_to_fork(-1) or 'fit')\n"
        "ends = socket.socketpair()\n"
        "print(unfit_to_fork(ends[0].fileno()).partition(':')[0])\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print(unfit_to_fork(-1))\n"
    )
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["fit", "socket", "2 threads run"]
    with_thread = threading.Timer(60, lambda: None)
    with_thread.start()
    assert "threads run" in unfit_to_fork(-1)
    with_thread.cancel()


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torchrun's handler of one process, whose own way to start it only says so."""
    monkeypatch.setattr(SubprocessHandler, "_popen", lambda self, args, env: "started")
    return SimpleNamespace(_stdout=None, _stderr=None)


def popen(handler: Any, *args: str) -> Any:
    return SubprocessHandler._popen(handler, args, dict(os.environ))


def test_torchrun_forks_what_it_would_have_started(
    zygote: Zygote, handler: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fork_workers(zygote)
    worker = popen(handler, sys.executable, "-u", "-m", "some_worker", "3")
    assert isinstance(worker, ForkedWorker)
    assert worker.wait(60) == 3
    assert str(worker.pid) in capfd.readouterr().out
    assert popen(handler, "numactl", sys.executable, "-m", "some_worker", "3") == "started"
    assert popen(handler, sys.executable, "script.py") == "started"


def test_a_zygote_that_dies_leaves_a_plain_process_and_is_begun_anew(
    zygote: Zygote, handler: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    fork_workers(zygote)
    first = zygote.pid
    os.kill(first, signal.SIGKILL)
    assert popen(handler, sys.executable, "-u", "-m", "some_worker", "3") == "started"
    assert "started, not forked" in capfd.readouterr().err
    worker = popen(handler, sys.executable, "-u", "-m", "some_worker", "3")
    assert isinstance(worker, ForkedWorker) and worker.wait(60) == 3
    assert zygote.pid != first and not Path(f"/proc/{first}").exists()


def test_a_zygote_that_always_dies_is_given_up(zygote: Zygote, handler: Any) -> None:
    fork_workers(zygote)
    pids = set()
    for _ in range(5):
        pids.add(zygote.pid)
        with suppress(ProcessLookupError):
            os.kill(zygote.pid, signal.SIGKILL)
        assert popen(handler, sys.executable, "-u", "-m", "some_worker", "3") == "started"
    assert len(pids) == 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


REJOINING = """
import os, sys
from eosin.training.elastic import forked
if sys.argv[1] == "first":
    zygote = forked.Zygote(["json"])
    zygote.wait_until_ready()
    print(os.getpid(), zygote.hand_over(), flush=True)
    os.execv(sys.executable, [sys.executable, __file__, "again"])
zygote = forked.begin_zygote()
os.environ["EOSIN_AGENT_PID"] = str(os.getpid())
worker = zygote.fork("some_worker", ["7"], dict(os.environ))
print(os.getpid(), zygote.pid, worker.wait(60), "EOSIN_ZYGOTE" in os.environ, flush=True)
zygote.close()
"""


def test_an_agent_that_begins_anew_keeps_its_zygote(environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "agent.py"
    script.write_text(REJOINING)
    done = subprocess.run([sys.executable, str(script), "first"], capture_output=True, text=True, check=True)
    first, worker, second = (line.split() for line in done.stdout.splitlines())
    assert second == [*first, "7", "False"]
    assert worker[0] == "['7']"


def test_one_that_is_not_ready_is_not_handed_over(environment: dict[str, str]) -> None:
    zygote = Zygote(["json"])
    assert zygote.hand_over() == 0 and "EOSIN_ZYGOTE" not in os.environ
    zygote.close()


def test_an_unfit_zygote_changes_nothing(environment: dict[str, str], handler: Any) -> None:
    plain = SubprocessHandler._popen
    fork_workers(Zygote(["no_such_module"]))
    assert SubprocessHandler._popen is plain


def test_a_zygote_that_does_not_answer_in_time_is_given_up(
    zygote: Zygote, handler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_workers(zygote)
    monkeypatch.setattr(forked, "_FORK_TIMEOUT_S", 0.2)
    stopped = zygote.pid
    os.kill(stopped, signal.SIGSTOP)
    assert popen(handler, sys.executable, "-u", "-m", "some_worker", "3") == "started"
    assert not Path(f"/proc/{stopped}").exists()


def test_whoever_wants_cold_workers_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COLD, "1")
    assert begin_zygote() is None


def test_a_hang_of_a_worker_kills_workers_alone(zygote: Zygote, tmp_path: Path) -> None:
    worker = fork(zygote, tmp_path / "log", "sleep")
    pulse = tmp_path / f"pulse-{worker.pid}"
    pulse.touch()
    os.utime(pulse, (0, 0))
    assert kill_hanging(tmp_path, [worker.pid], timeout_s=5)
    assert worker.wait(60) == -signal.SIGKILL
    assert fork(zygote, tmp_path / "log", "0").wait(60) == 0
