"""An elastic agent: torchrun with a bound on restarts that lead nowhere.

`python -m eosin.training.elastic.agent TORCHRUN-FLAGS -m MODULE RUN_URI`. torchrun restarts its workers
whatever they died of. This wrapper watches what the workers leave behind (`eosin.training.elastic.failures`)
and ends at once on an error that no restart mends, or after too many starts from one and the same
committed step. Exit codes: 0 done, 42 a user's error,
43 (in a pod) a defect that no restart mends, 75 transient, superseded or told to go, 1 anything else.

The reason is printed once: by whoever launched the agent, or by the agent where nobody did.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path

from eosin.process import die_with_parent
from eosin.training.elastic.processes import AGENT_PID, PARENT_PID, children_of, kill_all

if __name__ == "__main__" and PARENT_PID in os.environ:
    die_with_parent(int(os.environ.pop(PARENT_PID)))
    _launched = True
else:
    _launched = False
if __name__ == "__main__":
    # A worker that begins after this process has gone must notice.
    os.environ[AGENT_PID] = str(os.getpid())

from eosin.errors import (
    EXIT_CONFIGURATION_IN_POD,
    EXIT_PERMANENT,
    EXIT_PERMANENT_IN_POD,
    EXIT_TRANSIENT,
    describe,
)
from eosin.training.elastic.failures import (
    FAILURES_DIR,
    Failure,
    Start,
    last_transient,
    read_failures,
    read_starts,
    starts_without_progress,
    transient_rounds,
)
from eosin.training.elastic.heartbeat import watch_for_hangs
from eosin.training.elastic.membership import (
    exit_code_when_closed,
    is_closed_rendezvous,
    is_lost_rendezvous,
    leave_when_done,
    may_rejoin,
    notice_lost_nodes,
    rejoin,
)

REASON = "reason.json"
_PROGRESS_FLAG = "--max-restarts-without-progress="
_PATIENCE_FLAG = "--rendezvous-patience="
_HANG_FLAG = "--hang-timeout="
_POLL_S = 0.2
# Ranks of one node fail together; the one that knows most may be a moment later.
_SETTLE_S = 0.5


def main(arguments: list[str] | None = None) -> int:
    """Run torchrun with `arguments`; see the module."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    own = {flag: _value(arguments, flag) for flag in (_PROGRESS_FLAG, _PATIENCE_FLAG, _HANG_FLAG)}
    flags = [argument for argument in arguments if not argument.startswith(tuple(own))]
    limit = int(own[_PROGRESS_FLAG] or 3)
    folder = Path(os.environ.setdefault(FAILURES_DIR, tempfile.mkdtemp(prefix="eosin-agent-")))
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    threading.Thread(target=_watch, args=(folder, limit), name="eosin-agent", daemon=True).start()
    if own[_HANG_FLAG]:
        watch_for_hangs(folder, float(own[_HANG_FLAG]))
    try:
        return _torchrun(flags, folder)
    except Exception as error:
        if is_closed_rendezvous(error):
            return exit_code_when_closed(arguments[-1])
        if not is_lost_rendezvous(error) or not may_rejoin(folder, float(own[_PATIENCE_FLAG] or 0)):
            raise
        print(f"agent: the rendezvous is lost ({error}); joining again", file=sys.stderr, flush=True)
        rejoin(arguments, launched=_launched)
        raise


def _value(arguments: list[str], flag: str) -> str:
    """What follows the last `flag`; empty where it is not given."""
    return next((a.removeprefix(flag) for a in reversed(arguments) if a.startswith(flag)), "")


def verdict(folder: Path, max_restarts_without_progress: int) -> Failure | None:
    """Why to stop now, or None to let torchrun go on."""
    failures = read_failures(folder)
    if failures and failures[0].fatal:
        return failures[0]
    starts = read_starts(folder)
    times = max_restarts_without_progress + 1
    if starts_without_progress(starts) > times:
        return _too_many(starts, times, failures)
    return last_transient(failures, starts) if transient_rounds(failures, starts) > times else None


def _too_many(starts: list[Start], times: int, failures: list[Failure]) -> Failure:
    transient = last_transient(failures, starts)
    if transient is not None:
        return transient
    message = f"training was started {times} times more from step {starts[-1].step} and never got further"
    if not failures:
        hint = "its workers were killed from outside; is there enough memory? `dmesg` tells"
        return Failure("permanent", message, hint, -1, time.time())
    last = max(failures, key=lambda failure: failure.time_s)
    return Failure("permanent", f"{message}: {last.message}", last.hint, last.rank, time.time(), last.trace)


def _watch(folder: Path, limit: int) -> None:
    while (reason := verdict(folder, limit)) is None:
        time.sleep(_POLL_S)
    if reason.fatal:
        time.sleep(_SETTLE_S)
        reason = verdict(folder, limit) or reason
    _leave_reason(folder, reason)
    kill_all(children_of(os.getpid()))
    os._exit(_exit_code(folder, reason))


def _exit_code(folder: Path, reason: Failure) -> int:
    """In a pod, what a worker itself called permanent must not be tried again on another node."""
    if reason.kind == "user":
        return EXIT_CONFIGURATION_IN_POD
    if reason.kind in ("transient", "superseded"):
        return EXIT_TRANSIENT
    told = any(failure.fatal for failure in read_failures(folder))
    return EXIT_PERMANENT_IN_POD if told and os.environ.get("EOSIN_IN_POD") == "1" else EXIT_PERMANENT


def _leave_reason(folder: Path, reason: Failure) -> None:
    """Hand `reason` to the launcher; where none is, the log of the pod is read for it."""
    if not _launched:
        print(f"agent: {describe(reason.to_error())}", file=sys.stderr, flush=True)
    part = folder / f"{REASON}.part"
    part.write_text(json.dumps(asdict(reason)))
    part.replace(folder / REASON)


def _torchrun(flags: list[str], folder: Path) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    notice_lost_nodes()
    leave_when_done()
    try:
        run(parse_args(flags))
        return 0
    except SignalException:
        return EXIT_TRANSIENT
    except ChildFailedError as error:
        transient = last_transient(read_failures(folder), read_starts(folder))
        if transient is None:
            print(f"agent: {error}", file=sys.stderr)
            return EXIT_PERMANENT
        _leave_reason(folder, transient)
        return EXIT_TRANSIENT


if __name__ == "__main__":
    sys.exit(main())
