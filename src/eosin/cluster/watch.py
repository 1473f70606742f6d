"""States of a JobSet or TrainJob to its end, through dropped connections and expired resource versions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from eosin.cluster.api import Expired, Interrupted, Manifest
from eosin.cluster.training_jobs import TrainingJobs, terminal_state
from eosin.errors import TransientError

IDLE_S = 20
_PAUSE_S = 1.0
# A training of days outlives an upgrade of the control plane.
_PATIENCE_S = 1800.0
_AWAY_S = 10.0


def states(
    jobs: TrainingJobs, name: str, *, idle_s: int | None = None, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Manifest | None]:
    """Every state of the job `name`, at least one each `idle_s` seconds; the last is terminal, or None.

    Level-triggered: each round begins by reading the object whole, so that whatever a broken watch
    missed is caught up with, and the watch only makes it prompt. None: it was deleted.
    Raises `TransientError` where the API server stays away for half an hour.
    """
    idle_s = idle_s or IDLE_S
    while True:
        job = _patiently(jobs, name, sleep)
        yield job
        if job is None or terminal_state(job):
            return
        try:
            version = job["metadata"].get("resourceVersion", "")
            for changed in jobs.cluster.watch(jobs.resource, name, version, idle_s):
                if terminal_state(changed):
                    break
                yield changed
            else:
                sleep(_PAUSE_S)
        except (Interrupted, Expired, TransientError):
            sleep(_PAUSE_S)


def _patiently(jobs: TrainingJobs, name: str, sleep: Callable[[float], None]) -> Manifest | None:
    waited_s = 0.0
    while True:
        try:
            return jobs.cluster.get(jobs.resource, name)
        except TransientError:
            if waited_s >= _PATIENCE_S:
                raise
        sleep(_AWAY_S)
        waited_s += _AWAY_S
