"""Follower of a JobSet: mirrors logs and warnings, reports its state, judges its failure."""

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from eosin.cluster.api import Cluster, Expired, Interrupted, Manifest, Missing
from eosin.cluster.failure import PodFailure, explain_failure, stuck_pods
from eosin.cluster.names import FOLLOWED_ANNOTATION, JOBSET, PROGRESS_ANNOTATION, REPLICATED_JOB_LABEL
from eosin.cluster.pod_logs import PodLogMirror
from eosin.cluster.queue import is_dispatched, never_mends, why_it_waits
from eosin.cluster.training import end_training, terminal_state
from eosin.errors import EosinError, TransientError, UserError
from eosin.layout import RunLayout
from eosin.observability import RunLog, step_line
from eosin.runs import last_step
from eosin.storage import Store

# A worker's own error may stand before what the agent says of its end.
_LOG_LINES = 200
_NOTED_EVERY_S = 60.0
_SHOWN_OF_A_STEP = ("step", "num_steps", "images_per_s", "eta_s")
IDLE_S = 20
_PAUSE_S = 1.0
# A training of days outlives an upgrade of the control plane.
_PATIENCE_S = 1800.0
_AWAY_S = 10.0


def states(
    cluster: Cluster, name: str, *, idle_s: int | None = None, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Manifest | None]:
    """Every state of the JobSet `name`, at least one each `idle_s` seconds; the last is terminal, or None.

    Level-triggered: each round begins by reading the object whole, so that whatever a broken watch
    missed is caught up with, and the watch only makes it prompt. None: it was deleted.
    Raises `TransientError` where the API server stays away for half an hour.
    """
    idle_s = idle_s or IDLE_S
    while True:
        jobset = _patiently(cluster, name, sleep)
        yield jobset
        if jobset is None or terminal_state(jobset):
            return
        try:
            version = jobset["metadata"].get("resourceVersion", "")
            for changed in cluster.watch(JOBSET, name, version, idle_s):
                if terminal_state(changed):
                    break
                yield changed
            else:
                sleep(_PAUSE_S)
        except (Interrupted, Expired, TransientError):
            sleep(_PAUSE_S)


def _patiently(cluster: Cluster, name: str, sleep: Callable[[float], None]) -> Manifest | None:
    waited_s = 0.0
    while True:
        try:
            return cluster.get(JOBSET, name)
        except TransientError:
            if waited_s >= _PATIENCE_S:
                raise
        sleep(_AWAY_S)
        waited_s += _AWAY_S


@dataclass
class Follower:
    """Watches one JobSet, mirrors its pods' logs and warnings, and knows what went wrong."""

    cluster: Cluster
    mirror: PodLogMirror
    log: RunLog
    stuck_timeout_s: float
    last: Manifest | None = None
    """The job as it was last seen."""
    _noted_s: float = -math.inf
    _waits_for: str = ""
    _waits_since_s: float | None = None
    _queue_is_hidden: bool = False
    _warned: set[tuple[str, ...]] | None = None
    _stuck_since_s: dict[str, float] = field(default_factory=dict)
    _shown: dict[str, Any] = field(default_factory=dict)

    def follow(self, name: str) -> Manifest | None:
        """Until the JobSet ends; its last state, or None where it was deleted."""
        jobset: Manifest | None = None
        for jobset in states(self.cluster, name):
            if jobset is not None:
                self.last = jobset
                self._observe_if_possible(jobset)
        return jobset

    def explain(self, jobset: Manifest) -> EosinError:
        """The error to raise for a job that failed."""
        return explain_failure(jobset, self.cluster.list_pods(jobset["metadata"]["name"]), self._last_lines)

    def _observe_if_possible(self, jobset: Manifest) -> None:
        try:
            self._observe(jobset)
        except TransientError as error:
            self.log.event("warning", message=f"{error.message}; training goes on, seen or not")

    def _observe(self, jobset: Manifest) -> None:
        name = jobset["metadata"]["name"]
        pods = self.cluster.list_pods(name)
        self.mirror.observe(pods)
        self._report_state(jobset, pods)
        self._report_warnings(name)
        if not terminal_state(jobset):
            self._annotate(jobset)
            self._give_up_on_stuck(jobset, pods)
            self._give_up_on_queue(jobset)

    def _report_state(self, jobset: Manifest, pods: list[Manifest]) -> None:
        restarts = (jobset.get("status") or {}).get("restarts", 0)
        suspended = jobset["spec"].get("suspend") is True
        state = {"pods": phases(pods), "restarts": restarts, "suspended": suspended}
        if state != self._shown:
            self._shown = state
            self.log.event("cluster", jobset=jobset["metadata"]["name"], **state)

    def _report_warnings(self, name: str) -> None:
        try:
            events = self.cluster.warnings(name)
        except (Missing, UserError):  # events are a courtesy; the Role may not grant them
            return
        if self._warned is None:
            self._warned = set(_warnings_before(self.log.store))
        for event in events:
            what = {"object": event["involvedObject"]["name"], "reason": event.get("reason", "")}
            what |= {"message": event.get("message", ""), "at": _seen_at(event)}
            key = tuple(map(str, what.values()))
            if key not in self._warned:
                self._warned.add(key)
                self.log.event("warning", **what)

    def _annotate(self, jobset: Manifest) -> None:
        """Once a minute: how far it is, for whoever looks with kubectl, and that a launcher follows it.

        By the latter the training's own watcher knows that somebody judges its end (`eosin.cluster.watcher`).
        MultiKueue would copy it once and never again, so that a watcher there would end what is followed.
        """
        now_s = time.monotonic()
        if now_s - self._noted_s < _NOTED_EVERY_S:
            return
        self._noted_s = now_s
        now = datetime.now(UTC).isoformat(timespec="seconds")
        noted = {} if is_dispatched(jobset) else {FOLLOWED_ANNOTATION: now}
        noted |= self._progress()
        try:
            if noted:
                self.cluster.patch(JOBSET, jobset["metadata"]["name"], {"metadata": {"annotations": noted}})
        except Missing:
            return
        except UserError as error:  # a Role from before; without the note nothing ends an unfollowed training
            self._noted_s = math.inf
            self.log.event("warning", message=error.message)

    def _progress(self) -> dict[str, str]:
        """An annotation with the newest step of the run's log; none where there is none to be read."""
        with contextlib.suppress(EosinError, KeyError, TypeError, ValueError):
            if self.log.store is not None and (step := last_step(self.log.store)):
                shown = {key: step[key] for key in _SHOWN_OF_A_STEP}
                return {PROGRESS_ANNOTATION: f"{step_line(shown)} · {step['time']}"}
        return {}

    def _give_up_on_queue(self, jobset: Manifest) -> None:
        """A queue that is not there suspends a training for ever, and says so in its Workload alone."""
        if jobset["spec"].get("suspend") is not True or self._queue_is_hidden:
            self._waits_since_s = None
            return
        try:
            waits_for = why_it_waits(self.cluster, jobset)
        except UserError as error:
            self._queue_is_hidden = True
            self.log.event("warning", message=error.message)
            return
        if waits_for and waits_for != self._waits_for:
            self.log.event("queued", jobset=jobset["metadata"]["name"], message=waits_for)
        self._waits_for = waits_for
        if not never_mends(waits_for):
            self._waits_since_s = None
            return
        now_s = time.monotonic()
        self._waits_since_s = self._waits_since_s or now_s
        if now_s - self._waits_since_s >= self.stuck_timeout_s:
            end_training(self.cluster, jobset)
            raise UserError(
                f"the training was not admitted for {now_s - self._waits_since_s:.0f} s: {waits_for}",
                hint="correct cluster.queue or the pools, or have the queue changed; then run it again",
            )

    def _give_up_on_stuck(self, jobset: Manifest, pods: list[Manifest]) -> None:
        """GPUs must not be held for an image that cannot be pulled: delete the JobSet and say so."""
        now_s, stuck = time.monotonic(), stuck_pods(pods)
        self._stuck_since_s = {pod: self._stuck_since_s.get(pod, now_s) for pod in stuck}
        for pod, since_s in self._stuck_since_s.items():
            if now_s - since_s >= self.stuck_timeout_s:
                end_training(self.cluster, jobset)
                raise UserError(
                    f"pod {pod} waited {now_s - since_s:.0f} s for what cannot be had: {stuck[pod]}",
                    hint="check cluster.image, its pull secrets and cluster.s3.secret; run it again",
                )

    def _last_lines(self, failure: PodFailure) -> list[str]:
        lines = self.cluster.pod_log(failure.pod, failure.container, tail_lines=_LOG_LINES)
        return lines or self.mirror.tail(failure.pod)


def phases(pods: list[Manifest]) -> dict[str, dict[str, int]]:
    """Pool → phase → number of pods."""
    pairs = Counter(
        (
            pod["metadata"].get("labels", {}).get(REPLICATED_JOB_LABEL, "?"),
            "Terminating"
            if pod["metadata"].get("deletionTimestamp")
            else pod.get("status", {}).get("phase", "Unknown"),
        )
        for pod in pods
    )
    phases: dict[str, dict[str, int]] = {}
    for (pool, phase), number in sorted(pairs.items()):
        phases.setdefault(pool, {})[phase] = number
    return phases


def _seen_at(event: Manifest) -> str:
    """When it last happened; the API has had several fields for it."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return str(next(filter(None, times), event["metadata"].get("creationTimestamp") or ""))


def _warnings_before(store: Store | None) -> Iterator[tuple[str, ...]]:
    """Warnings that launchers of the run have told of already; a log that cannot be read holds none."""
    try:
        parts = [store.get(info.key) for info in store.list(RunLayout.logs("launch"))] if store else []
    except EosinError:
        return
    for line in b"\n".join(parts).splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            told = json.loads(line)
            yield tuple(str(told[key]) for key in ("object", "reason", "message", "at"))
