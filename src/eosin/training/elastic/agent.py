"""An elastic agent: torchrun with a bound on restarts that lead nowhere.

`python -m eosin.training.elastic.agent TORCHRUN-FLAGS -m MODULE RUN_URI`. torchrun restarts its workers
whatever they died of. This wrapper watches what the workers leave behind (`eosin.training.elastic.reports`)
and ends at once on an error that no restart mends, or after too many starts from one and the same
committed step. Exit codes: 0 done, 42 a user's error,
43 (in a pod) a defect that no restart mends, 75 transient, superseded or told to go, 1 anything else.

The reason is printed once: by whoever launched the agent, or by the agent where nobody did.
"""

import os
from pathlib import Path

from eosin.process import die_with_parent
from eosin.training.elastic.processes import (
    AGENT_PID,
    PARENT_PID,
    Departure,
    children_of,
    kill_all,
    oom_kills,
)

if __name__ == "__main__":  # before torch is imported, which takes seconds
    _departure, _launched = Departure(), PARENT_PID in os.environ
    _departure.on_sigterm()
    if _launched:
        die_with_parent(int(os.environ.pop(PARENT_PID)))
    # A worker that begins after this process has gone must notice.
    os.environ[AGENT_PID] = str(os.getpid())
else:
    _departure, _launched = Departure(), False

import json
import logging
import signal
import sys
import tempfile
import threading
import time
from dataclasses import asdict

from eosin.errors import (
    EXIT_CONFIGURATION_IN_POD,
    EXIT_PERMANENT,
    EXIT_PERMANENT_IN_POD,
    EXIT_TRANSIENT,
    describe,
)
from eosin.training.elastic.membership import (
    exit_code_when_closed,
    follow_membership,
    is_closed_rendezvous,
    is_lost_rendezvous,
    leave_when_done,
    may_rejoin,
    rejoin,
)
from eosin.training.elastic.reports import (
    FAILURES_DIR,
    Failure,
    Round,
    SnapshotRequests,
    Start,
    WorkerExit,
    last_transient,
    read_failures,
    read_reports,
    report_exit,
    rounds_without_progress,
    watch_for_hangs,
)

REASON = "reason.json"
_PROGRESS_FLAG = "--max-restarts-without-progress="
_PATIENCE_FLAG = "--rendezvous-patience="
_HANG_FLAG = "--hang-timeout="
_SHUTDOWN_FLAG = "--shutdown-timeout="
_POLL_S = 0.2
# Ranks of one node fail together; the one that knows most may be a moment later.
_SETTLE_S = 0.5
# A step that takes longer is not waited for where a node joins.
_SNAPSHOT_PATIENCE_S = 120.0
# Processes that the kernel had killed for memory when this agent began, across `rejoin`.
_OOM_KILLS = "EOSIN_OOM_KILLS"


def main(arguments: list[str] | None = None) -> int:
    """Run torchrun with `arguments`; see the module."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    own = {flag: _value(arguments, flag) for flag in (_PROGRESS_FLAG, _PATIENCE_FLAG, _HANG_FLAG)}
    flags = [argument for argument in arguments if not argument.startswith(tuple(own))]
    limit = int(own[_PROGRESS_FLAG] or 3)
    folder = Path(os.environ.setdefault(FAILURES_DIR, tempfile.mkdtemp(prefix="eosin-agent-")))
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ.setdefault(_OOM_KILLS, str(oom_kills() or 0))
    requests = SnapshotRequests(folder, _SNAPSHOT_PATIENCE_S)
    _departure.timeout_s = float(_value(arguments, _SHUTDOWN_FLAG) or _departure.timeout_s)
    _departure.prepare = requests.wait
    threading.Thread(target=_watch, args=(folder, limit), name="eosin-agent", daemon=True).start()
    if own[_HANG_FLAG]:
        watch_for_hangs(folder, float(own[_HANG_FLAG]))
    try:
        code = _torchrun(flags, folder, requests)
    except Exception as error:
        if _departure.has_begun.is_set():
            return EXIT_TRANSIENT
        if is_closed_rendezvous(error):
            return exit_code_when_closed(arguments[-1])
        if not is_lost_rendezvous(error) or not may_rejoin(folder, float(own[_PATIENCE_FLAG] or 0)):
            raise
        print(f"agent: the rendezvous is lost ({error}); joining again", file=sys.stderr, flush=True)
        rejoin(arguments, launched=_launched)
        raise
    return EXIT_TRANSIENT if code and _departure.has_begun.is_set() else code


def _value(arguments: list[str], flag: str) -> str:
    """What follows the last `flag`; empty where it is not given."""
    return next((a.removeprefix(flag) for a in reversed(arguments) if a.startswith(flag)), "")


def verdict(folder: Path, max_restarts_without_progress: int) -> Failure | None:
    """Why to stop now, or None to let torchrun go on."""
    failures = read_failures(folder)
    if failures and failures[0].fatal:
        return failures[0]
    rounds, starts = read_reports(folder, Round), read_reports(folder, Start)
    idle = rounds_without_progress(rounds, starts)
    times = max_restarts_without_progress + 1
    if len(idle) <= times:
        return None
    return last_transient(failures, rounds) or _too_many(folder, times, idle, starts, failures)


def _too_many(
    folder: Path, times: int, idle: list[Round], starts: list[Start], failures: list[Failure]
) -> Failure:
    """`times`: starts that led nowhere; `idle`: their rounds."""
    where = f"from step {starts[-1].step}" if starts else "before any step"
    message = f"training was started {times} times more {where} and never got further"
    killed = _killed_for_memory()
    if killed:
        return Failure("permanent", f"{message}: {killed}", _MEMORY_HINT, -1, time.time())
    recent = [failure for failure in failures if failure.time_s >= idle[0].time_s]
    if recent:
        last = max(recent, key=lambda failure: failure.time_s)
        message = f"{message}: {last.message}"
        return Failure("permanent", message, last.hint, last.rank, time.time(), last.trace)
    exits = [each.code for each in read_reports(folder, WorkerExit) if each.time_s >= idle[0].time_s]
    cause = _describe_exit(exits[-1]) if exits else "its workers ended without a word"
    hint = "the last lines of its log say more; is there enough memory? `dmesg` tells"
    return Failure("permanent", f"{message}: {cause}", hint, -1, time.time())


_MEMORY_HINT = (
    "raise `memory` of its pool, or lower cluster.shm_size, train.elastic.workers_per_node and"
    " patches.tile_cache_bytes"
)


def _killed_for_memory() -> str:
    """What the kernel has killed for memory since this agent began; empty where it has not."""
    before, now = int(os.environ.get(_OOM_KILLS, "0")), oom_kills() or 0
    if now <= before:
        return ""
    return f"the kernel killed {now - before} processes of this container for memory"


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"its workers ended with exit code {code} before they could say why"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"its workers were killed by {name}, which came from outside"


class _ExitLog(logging.Handler):
    """Exit codes of workers, out of what torchrun logs of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(logging.ERROR)
        self._folder = folder

    def emit(self, record: logging.LogRecord) -> None:
        """Note a line `failed (exitcode: -9) local_rank: 0 (pid: 12) …`."""
        args = record.args if isinstance(record.args, tuple) else ()
        if "exitcode" in str(record.msg) and len(args) >= 3 and isinstance(args[0], int):
            report_exit(self._folder, args[0], int(str(args[2])))


def _watch(folder: Path, limit: int) -> None:
    while (reason := verdict(folder, limit)) is None:
        time.sleep(_POLL_S)
    if reason.fatal:
        time.sleep(_SETTLE_S)
        reason = verdict(folder, limit) or reason
    if _departure.has_begun.is_set():
        return
    _leave_reason(folder, reason)
    kill_all(children_of(os.getpid()))
    os._exit(_exit_code(folder, reason))


def _exit_code(folder: Path, reason: Failure) -> int:
    """In a pod, what a worker itself called permanent must not be tried again on another node, nor what its
    memory is too small for."""
    if reason.kind == "user":
        return EXIT_CONFIGURATION_IN_POD
    if reason.kind in ("transient", "superseded"):
        return EXIT_TRANSIENT
    told = reason.hint == _MEMORY_HINT or any(failure.fatal for failure in read_failures(folder))
    return EXIT_PERMANENT_IN_POD if told and os.environ.get("EOSIN_IN_POD") == "1" else EXIT_PERMANENT


def _leave_reason(folder: Path, reason: Failure) -> None:
    """Hand `reason` to the launcher; where none is, the log of the pod is read for it."""
    if not _launched:
        print(f"agent: {describe(reason.to_error())}", file=sys.stderr, flush=True)
    part = folder / f"{REASON}.part"
    part.write_text(json.dumps(asdict(reason)))
    part.replace(folder / REASON)


def _torchrun(flags: list[str], folder: Path, requests: SnapshotRequests) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    follow_membership(folder, requests, _departure)
    leave_when_done()
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").addHandler(_ExitLog(folder))
    try:
        # SIGTERM is handled by this module, from its first line on.
        run(parse_args(["--signals-to-handle=SIGINT,SIGHUP,SIGQUIT", *flags]))
        return 0
    except SignalException:
        return EXIT_TRANSIENT
    except ChildFailedError as error:
        transient = last_transient(read_failures(folder), read_reports(folder, Round))
        if transient is None:
            print(f"agent: {error}", file=sys.stderr)
            return EXIT_PERMANENT
        _leave_reason(folder, transient)
        return EXIT_TRANSIENT


if __name__ == "__main__":
    sys.exit(main())
