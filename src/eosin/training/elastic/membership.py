"""Changes of membership in torchrun agents: a lost node, a lost rendezvous store, a world that has ended."""

import functools
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from eosin.errors import EXIT_TRANSIENT, EosinError, describe
from eosin.training.elastic.processes import PARENT_PID, Departure, children_of, kill_all
from eosin.training.elastic.reports import SnapshotRequests, Start, read_reports, report_round

_NUM_NODES = "_eosin_num_nodes"
_LOST_SINCE = "EOSIN_RENDEZVOUS_LOST_SINCE"
_PAUSE_S = 1.0


def follow_membership(folder: Path, requests: SnapshotRequests, departure: Departure) -> None:
    """From now on agents of this process tell `folder` of every round of workers and make changes of the
    world cheap. Once a process is enough.

    - Before a node that waits is let in, workers are asked for a snapshot, so that no step is lost.
    - A world that has lost a node is left. torchrun strikes a node that sends no keep-alive from its list,
      but restarts its workers only when one of them fails or a new node waits. Whoever was killed closes its
      connections and is noticed at once; who was switched off or cut off does not, and its peers would sit
      in a collective until the process group's timeout. So a world from which a node was struck counts as
      one that somebody waits to join. It looks at a private attribute of torch's rendezvous; where that is
      gone, nothing changes.
    - Who has lost the rendezvous, or waits in vain for what a node killed between round and workers should
      have written there, joins again. torchrun would close it on the way out, for everybody and for good: so
      it does only where training has ended or no restart is left, and who dies of a defect goes alone.
    - Whether a node lives is judged by this machine's clock alone (`judge_by_own_clock`).
    - No workers are started any more once this agent has been told to go.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler as Handler

    judge_by_own_clock()
    join, count, close = Handler.next_rendezvous, Handler.num_nodes_waiting, Handler.shutdown
    # The first round of an agent that joins again follows no death.
    is_planned = _LOST_SINCE in os.environ

    @functools.wraps(join)
    def next_rendezvous(self: Any) -> Any:
        nonlocal is_planned
        requests.forget()
        _stay_if(departure)
        self._state_holder._eosin_node = getattr(self, "_this_node", None)
        info = join(self)
        _stay_if(departure)
        setattr(self, _NUM_NODES, info.world_size)
        report_round(folder, is_planned=is_planned)
        is_planned = False
        return info

    @functools.wraps(count)
    def num_nodes_waiting(self: Any) -> int:
        nonlocal is_planned
        found, lost = count(self), _num_lost(self)
        if not found and not departure.has_begun.is_set():
            requests.withdraw()
        # Workers that wait for a lost node in a collective answer nothing.
        if found and not lost and not requests.is_answered():
            return 0
        is_planned = is_planned or bool(found or lost)
        return found or lost

    @functools.wraps(close)
    def shutdown(self: Any) -> bool:
        reason = sys.exc_info()[1]
        if reason is None or isinstance(reason, ChildFailedError):
            return bool(close(self))
        self._stop_heartbeats()
        return False

    Handler.shutdown = shutdown  # type: ignore[method-assign]  # torch has no hook
    Handler.next_rendezvous = next_rendezvous  # type: ignore[method-assign]  # torch has no hook
    Handler.num_nodes_waiting = num_nodes_waiting  # type: ignore[method-assign]  # torch has no hook


def _stay_if(departure: Departure) -> None:
    """Wait for the end of this process where it is on its way."""
    while departure.has_begun.is_set():
        time.sleep(1.0)


def judge_by_own_clock() -> None:
    """From now on agents of this process strike a node from the list once they have not seen its keep-alive
    change for as long as they shall wait, and never themselves.

    torch compares the time that the other machine wrote with its own: clocks that differ by more than that,
    or one that is set, strike nodes that live, and an agent that got no CPU for so long struck itself. A
    keep-alive that is old when it is seen first gets half the time: its node may be long gone.
    """
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
        _BackendRendezvousStateHolder as Holder,
    )

    sanitize = Holder._sanitize

    @functools.wraps(sanitize)
    def strike_silent(self: Any) -> None:
        state, settings = self._state, self._settings
        patience = settings.keep_alive_interval * settings.keep_alive_max_attempt
        told, seen = state.last_heartbeats, self.__dict__.setdefault("_eosin_seen", {})
        now_s, now = time.monotonic(), datetime.now(UTC)
        for node, beat in told.items():
            if node not in seen:
                age = min(max(now - beat, timedelta()), patience / 2)
                seen[node] = (beat, now_s - age.total_seconds())
            elif beat != seen[node][0] or node == getattr(self, "_eosin_node", None):
                seen[node] = (beat, now_s)
        state.last_heartbeats = {node: now - timedelta(seconds=now_s - seen[node][1]) for node in told}
        sanitize(self)
        state.last_heartbeats = {node: told[node] for node in state.last_heartbeats}

    Holder._sanitize = strike_silent  # type: ignore[method-assign]  # torch has no hook


def _num_lost(handler: Any) -> int:
    """Nodes of the present world that were struck from the list."""
    try:
        present = len(handler._state_holder.state.participants)
    except AttributeError:
        return 0
    lost = max(0, getattr(handler, _NUM_NODES, 0) - present)
    if lost:
        nodes = f"{lost} of {getattr(handler, _NUM_NODES)} nodes"
        print(f"agent: {nodes} sent no keep-alive; meeting again without", file=sys.stderr, flush=True)
    return lost


def leave_when_done() -> None:
    """From now on agents of this process leave as soon as their own workers have ended well.

    torchrun's wait five minutes for each other, since one of them may host the store. Here it is a process of
    its own, and workers end well together: all wait until the last one has published. An agent that waited
    would hold its GPUs for one that has been started anew meanwhile and will never come.
    """
    from torch.distributed.elastic.agent.server.api import SimpleElasticAgent

    SimpleElasticAgent._exit_barrier = lambda self: None  # type: ignore[method-assign]  # torch has no hook


def is_closed_rendezvous(error: BaseException) -> bool:
    """Whether `error` says that the others have parted, as they do when training has ended."""
    from torch.distributed.elastic.rendezvous import RendezvousClosedError

    return isinstance(error, RendezvousClosedError)


def exit_code_when_closed(run_uri: str) -> int:
    """0 where training has ended, as for the others: a Job whose last pod failed would not have ended.

    75 where it has not, or where the store does not tell: the next try finds out.
    """
    try:
        ended = _has_ended(run_uri)
    except EosinError as error:
        print(f"agent: {describe(error)}", file=sys.stderr, flush=True)
        return EXIT_TRANSIENT
    if ended:
        print("agent: training has ended before this agent came", file=sys.stderr, flush=True)
        return 0
    print("agent: the others have parted before training ended", file=sys.stderr, flush=True)
    return EXIT_TRANSIENT


def _has_ended(run_uri: str) -> bool:
    from eosin.runs import load_run, load_training_done
    from eosin.storage import open_store

    store = open_store(run_uri)
    return load_training_done(store, load_run(run_uri, store=store)) is not None


def is_lost_rendezvous(error: BaseException) -> bool:
    """Whether `error` says that the store is gone or has forgotten us, not that the run has ended."""
    from torch.distributed import DistError
    from torch.distributed.elastic.rendezvous import (
        RendezvousConnectionError,
        RendezvousStateError,
        RendezvousTimeoutError,
    )

    lost = (DistError, RendezvousConnectionError, RendezvousStateError, RendezvousTimeoutError)
    return isinstance(error, lost)


def may_rejoin(folder: Path, patience_s: float) -> bool:
    """Whether there is patience left since the store was lost for the first time after the last start.

    Remembers that time in the environment, which the agent hands on to itself.
    """
    now_s = time.time()
    lost_s = float(os.environ.get(_LOST_SINCE, "inf"))
    started_s = max((start.time_s for start in read_reports(folder, Start)), default=0.0)
    if started_s > lost_s or lost_s > now_s:
        lost_s = now_s
    os.environ[_LOST_SINCE] = str(lost_s)
    return now_s - lost_s < patience_s


def rejoin(arguments: Sequence[str], *, launched: bool) -> None:
    """Begin this process anew as an agent with `arguments`; its process id stays. Does not return.

    Ending would be simpler, but a pod that ends takes its shared memory with it, and with it the snapshots
    of its node.
    """
    kill_all(children_of(os.getpid()))
    time.sleep(_PAUSE_S)
    if launched:
        os.environ[PARENT_PID] = str(os.getppid())
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "eosin.training.elastic.agent", *arguments])
