"""Watcher of a training, beside its rendezvous store: ends what no run wants any more.

Kubeflow's Terminate gives a launcher no time to say anything, and one that is evicted may never come back.
This container is the training's own: it sees whether the run was terminated, and whether anybody follows it.
What it ends, and why, is in the run's log and in `eosin status`: nobody else may be left to say it.
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from eosin.cluster.api import Cluster, Manifest, connect
from eosin.cluster.names import FOLLOWED_ANNOTATION, JOBSET, WORKFLOW, annotation
from eosin.cluster.resources import is_being_deleted
from eosin.cluster.training import terminal_state
from eosin.cluster.workflow import has_ended, is_stopped, owning_workflows
from eosin.errors import EXIT_TRANSIENT, EosinError, TransientError
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.records import StepFailure
from eosin.storage import Store, open_store

_POLL_S = 10.0


@dataclass
class Watcher:
    """Watches the JobSet `name`, and deletes it where it should end: its pods save and go."""

    cluster: Cluster
    name: str
    unfollowed_timeout_s: float
    log: RunLog
    clock: Callable[[], float] = time.monotonic
    _followed: str = field(default="", init=False)
    _followed_s: float = field(default=0.0, init=False)
    _complained: str = field(default="", init=False)

    def look(self) -> bool:
        """Look once; False where nothing is left to watch. Never raises for what a cluster may answer."""
        try:
            job = self.cluster.get(JOBSET, self.name)
            if job is None:
                return False
            if is_being_deleted(job) or terminal_state(job):
                return True
            reason = self._reason_to_end(job)
            if reason:
                self.cluster.delete(JOBSET, job, propagation="Foreground")
                self.log.event("ending", jobset=self.name, reason=reason)
                self._note(reason)
        except TransientError as error:
            self._followed = ""  # what was noted meanwhile could not be seen: the time begins anew
            self._complain(error)
        except EosinError as error:
            self._complain(error)
        return True

    def _reason_to_end(self, job: Manifest) -> str:
        workflows = [self.cluster.get(WORKFLOW, name) for name in owning_workflows(job)]
        there = [workflow for workflow in workflows if workflow is not None]
        wanted = [each for each in there if not is_stopped(each) and not has_ended(each)]
        if any(is_stopped(each) for each in there) and not wanted:
            return "its run was terminated"
        return self._unfollowed(job)

    def _unfollowed(self, job: Manifest) -> str:
        """By this machine's clock, since a note of another's may be skewed."""
        note = annotation(job, FOLLOWED_ANNOTATION)
        now_s = self.clock()
        if not note or note != self._followed:
            self._followed, self._followed_s = note, now_s
        alone_s = now_s - self._followed_s
        if note and alone_s > self.unfollowed_timeout_s:
            return f"no launcher has followed it for {alone_s:.0f} s (cluster.unfollowed_timeout_s)"
        return ""

    def _note(self, reason: str) -> None:
        """A record in the run, which the step's success deletes; the pod has seconds left for it."""
        self.log.flush()
        failure = StepFailure(
            step="train", message=f"the watcher has ended the training: {reason}",
            hint="it goes on from its last state: eosin resume RUN, or the same run URI submitted again",
            kind="Ended", exit_code=EXIT_TRANSIENT, time=datetime.now(UTC).isoformat(timespec="seconds"),
            pod=os.environ.get("HOSTNAME", ""),
        )  # fmt: skip
        self.log.attach(RunLayout.failure(failure.step), failure.to_json())

    def _complain(self, error: EosinError) -> None:
        """Once, as long as it is the same."""
        if error.message != self._complained:
            self._complained = error.message
            self.log.event("warning", message=error.message)


def _store_of(run_uri: str) -> Store | None:
    """None where it cannot be opened: then nothing is noted, and the training is watched all the same."""
    try:
        return open_store(run_uri)
    except EosinError as error:
        RunLog("watcher").event("warning", message=f"nothing is noted in the run: {error.message}")
        return None


def main(arguments: list[str] | None = None) -> int:
    """Watch until the training is gone, or until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m eosin.cluster.watcher", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("run_uri")
    parser.add_argument("--unfollowed-timeout", type=float, default=3600.0)
    options = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # The pod is told to go as soon as its JobSet is: few tries, each of them short.
    os.environ.setdefault("EOSIN_RETRY_DEADLINE_S", "3")
    log = RunLog("watcher", _store_of(options.run_uri))
    watcher = Watcher(connect(attempts=2), options.name, options.unfollowed_timeout, log)
    while not stop.wait(_POLL_S):
        watcher.look()
    return 0


if __name__ == "__main__":
    sys.exit(main())
