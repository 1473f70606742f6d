"""Mirror of pod logs in the run, where they outlive the pods."""

import collections
import json
import re
import sys
import threading
import time
from collections.abc import Callable

from eosin.cluster.api import Cluster, Interrupted, Manifest, Missing
from eosin.errors import EosinError
from eosin.layout import RunLayout
from eosin.storage import Store

LINES_PER_PART = 500
_TAIL_LINES = 20
_FLUSH_EVERY_S = 5.0
_RECONNECT_S = 2.0
_OVERLAP_S = 5
_STAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d+))?")


class PodLog:
    """The lines of one container, published in parts of 500, each named after its first line's time.

    Parts depend on the lines alone: a launcher that begins again from the start of the log writes the
    same objects with the same contents.
    """

    def __init__(self, pod: str, store: Store) -> None:
        self._source = f"pods/{pod}"
        self._store = store
        self._lines: list[str] = []
        self._part = ""
        self._last = ("", "")
        self._seen_s: float | None = None
        self._flushed_s = time.monotonic()
        self._lock = threading.Lock()
        self.tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)

    def add(self, line: str) -> bool:
        """Take one line with its timestamp before it; False where it was taken before."""
        stamp, _, text = line.partition(" ")
        with self._lock:
            # A reconnected stream begins a little before it broke off; within one instant of the
            # clock the kubelet keeps the order, so that only the very last line can repeat.
            at = part_name(stamp)
            if at < self._last[0] or (at, text) == self._last:
                return False
            self._last = (at, text)
            self._seen_s = time.monotonic()
            self._part = self._part or at
            event = {"time": stamp, "source": self._source, "event": "line", "text": text}
            self._lines.append(json.dumps(event, ensure_ascii=False))
            self.tail.append(text)
            if len(self._lines) >= LINES_PER_PART:
                self._publish()
                self._lines, self._part = [], ""
            elif time.monotonic() - self._flushed_s >= _FLUSH_EVERY_S:
                self._publish()
        return True

    @property
    def age_s(self) -> int | None:
        """Seconds since a line last came, and a few more for the clock; None where none did."""
        if self._seen_s is None:
            return None
        return int(time.monotonic() - self._seen_s) + _OVERLAP_S

    def flush(self) -> None:
        """Publish the lines that are still in memory."""
        with self._lock:
            self._publish()

    def _publish(self) -> None:
        self._flushed_s = time.monotonic()
        if self._lines:
            self._store.put(RunLayout.log(self._source, self._part), ("\n".join(self._lines) + "\n").encode())


class PodLogMirror:
    """Follows every container of a JobSet in a thread of its own.

    `echo` is the prefix of the pods whose lines are also written to standard error, so that whoever
    watches the launcher sees the training. A log that cannot be read or stored never stops the run.
    """

    def __init__(self, cluster: Cluster, store: Store, *, echo: str = "") -> None:
        self._cluster = cluster
        self._store = store
        self._echo = echo
        self._logs: dict[str, PodLog] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._stop = threading.Event()

    def observe(self, pods: list[Manifest]) -> None:
        """Begin to follow what has started since the last call, and publish what has come in."""
        for log in list(self._logs.values()):
            self._quietly(log.flush)
        for pod in pods:
            key = f"{pod['metadata']['name']}-{pod['metadata'].get('uid', '')[:8]}"
            if key not in self._threads and _has_started(pod):
                self._logs[key] = PodLog(key, self._store)
                thread = threading.Thread(
                    target=self._follow, args=(key, pod), name=f"log-{key}", daemon=True
                )
                self._threads[key] = thread
                thread.start()

    def tail(self, pod: str) -> list[str]:
        """The last lines seen of a pod."""
        found = [log for key, log in self._logs.items() if key.startswith(f"{pod}-")]
        return list(found[-1].tail) if found else []

    def close(self, *, timeout_s: float = 10.0) -> None:
        """Let the followers of ended containers finish, then publish what is left."""
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads.values():
            thread.join(max(deadline_s - time.monotonic(), 0))
        self._stop.set()
        for log in self._logs.values():
            self._quietly(log.flush)

    def _follow(self, key: str, pod: Manifest) -> None:
        name = pod["metadata"]["name"]
        container = pod["spec"]["containers"][0]["name"]
        while not self._stop.is_set():
            try:
                self._follow_once(key, name, container)
                return
            except Missing:
                return
            except (Interrupted, EosinError):
                self._stop.wait(_RECONNECT_S)
        self._quietly(self._logs[key].flush)

    def _follow_once(self, key: str, name: str, container: str) -> None:
        log = self._logs[key]
        for line in self._cluster.follow_pod_log(name, container, log.age_s):
            if self._quietly(log.add, line) and self._echo and name.startswith(self._echo):
                print(line.partition(" ")[2], file=sys.stderr, flush=True)
        self._quietly(log.flush)

    def _quietly(self, function: Callable[..., object], *args: object) -> object:
        try:
            return function(*args)
        except Exception as error:
            print(f"pod logs: a part could not be stored: {error}", file=sys.stderr)
            return True


def part_name(stamp: str) -> str:
    """A key that sorts by time from an RFC 3339 timestamp of any precision (nanoseconds are padded)."""
    found = _STAMP.match(stamp)
    if found is None:
        return re.sub(r"[^0-9A-Za-z]", "", stamp)[:32] or "unknown"
    year, month, day, hour, minute, second, fraction = found.groups(default="")
    return f"{year}{month}{day}T{hour}{minute}{second}.{fraction[:9]:0<9}"


def _has_started(pod: Manifest) -> bool:
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return any("running" in status["state"] or "terminated" in status["state"] for status in statuses)


def echo_prefix(jobset: str, anchor: str) -> str:
    """Prefix of the name of the pod that holds rank 0 while nothing is lost."""
    return f"{jobset}-{anchor}-0-0-"
