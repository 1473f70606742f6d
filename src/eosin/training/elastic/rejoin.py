"""What an agent does that has lost the rendezvous store: meet the others again without leaving its pod.

Ending would be simpler, but a pod that ends takes its shared memory with it, and with it the snapshots of
its node. So the agent begins anew in its own process, as often as it takes.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from eosin.training.elastic.failures import read_starts
from eosin.training.elastic.processes import PARENT_PID, children_of, kill_all

_LOST_SINCE = "EOSIN_RENDEZVOUS_LOST_SINCE"
_PAUSE_S = 1.0


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
    started_s = max((start.time_s for start in read_starts(folder)), default=0.0)
    if started_s > lost_s or lost_s > now_s:
        lost_s = now_s
    os.environ[_LOST_SINCE] = str(lost_s)
    return now_s - lost_s < patience_s


def rejoin(arguments: Sequence[str], *, launched: bool, spared: int = 0) -> None:
    """Begin this process anew as an agent with `arguments`; its process id stays. Does not return.

    `spared`: the process id of a child that the agent takes over.
    """
    kill_all([pid for pid in children_of(os.getpid()) if pid != spared])
    time.sleep(_PAUSE_S)
    if launched:
        os.environ[PARENT_PID] = str(os.getppid())
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "eosin.training.agent", *arguments])
