"""Client of libcurl: many requests at once, each batch from one thread, over connections that stay open."""

import re
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import NamedTuple

import pycurl

# Requests that a process sends at once; the rest waits.
MAX_IN_FLIGHT = 128
# Each body comes in pieces of at most this, and each piece costs a call into Python.
_PIECE_BYTES = 128 << 10
# An answer may be this much longer than what was asked for: an error that the server explains.
_EXPLANATION_BYTES = 64 << 10
_CODE = re.compile(rb"<Code>([^<]{1,100})</Code>")
_LONGEST_WAIT_S = 1.0
# select() cannot watch the sockets of a process that has over a thousand files open.
_WAIT_UNWATCHED_S = 0.002
# Each look at the answers costs a call for every request under way, and to be woken for it more than that.
# So once there are some, more are let come before the next look, unless few are left, for a share of the time
# taken so far: at most as long as the sockets can take in what comes meanwhile.
_FEW, _GATHER_SHARE, _GATHER_AT_LEAST_S, _GATHER_AT_MOST_S = 4, 1 / 8, 0.001, 0.025


class Get(NamedTuple):
    """A GET of bytes [start, end) of `url`; `headers` beside the range."""

    url: str
    start: int
    end: int
    headers: tuple[str, ...]


class Put(NamedTuple):
    """A PUT of `body`."""

    url: str
    body: bytes
    headers: tuple[str, ...]


Request = Get | Put
Sign = Callable[[Request], tuple[str, ...]]
"""The headers that sign a request."""


class Answer(NamedTuple):
    """`trouble` is libcurl's error code, 0 where the server answered; then `status` and `body` hold."""

    status: int
    body: bytes
    trouble: int = 0
    reason: str = ""
    headers: tuple[bytes, ...] = ()
    """Lines, of a PUT's answer."""

    @property
    def code(self) -> str:
        """S3's name for the error, empty where the body has none."""
        found = _CODE.search(self.body)
        return found.group(1).decode("ascii", "replace") if found else ""


@dataclass(frozen=True)
class CurlOptions:
    """Options of every request."""

    ca_bundle: str
    proxy: str
    timeout_s: float
    user_agent: str


class CurlClient:
    """Requests of this process: one multi handle for each thread that fetches, kept with its connections for
    the next. Thread-safe."""

    def __init__(self, options: CurlOptions) -> None:
        self._options = options
        self._idle: list[_Multi] = []
        self._num_multis = 0
        self._lock = threading.Lock()
        # A token a request: threading's semaphores cost fifteen times as much.
        self._permits: SimpleQueue[None] = SimpleQueue()
        for _ in range(MAX_IN_FLIGHT):
            self._permits.put(None)

    def fetch(self, requests: Sequence[Request], sign: Sign) -> list[Answer]:
        """All answers, in order; `sign` is asked as each request is sent. From any thread."""
        with self._multi() as multi:
            return multi.fetch(requests, sign)

    @contextmanager
    def _multi(self) -> "Iterator[_Multi]":
        with self._lock:
            if not self._idle:
                self._idle.append(_Multi(self._options, self._permits))
                self._num_multis += 1
            multi, num_multis = self._idle.pop(), self._num_multis
        # Twice their share: a thread whose batch is larger would connect anew for the surplus each time.
        multi.keep(max(2, 2 * MAX_IN_FLIGHT // num_multis))
        try:
            yield multi
        except BaseException:  # whatever it was, transfers may still be under way
            multi.close()
            with self._lock:
                self._num_multis -= 1
            raise
        with self._lock:
            self._idle.append(multi)


class _Transfer:
    """One request at a time, by a handle that is used again for the next of its kind."""

    def __init__(self, options: CurlOptions, idle: "list[_Transfer]") -> None:
        self.idle = idle
        """Where it waits for the next request."""
        self.curl = curl = pycurl.Curl()
        self.pieces: list[bytes] = []
        self.headers: list[bytes] = []
        self.place = 0
        self._most_bytes = 0
        curl.setopt(pycurl.WRITEFUNCTION, self.pieces.append)
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        curl.setopt(pycurl.BUFFERSIZE, _PIECE_BYTES)
        curl.setopt(pycurl.CONNECTTIMEOUT_MS, int(1000 * min(10.0, options.timeout_s)))
        curl.setopt(pycurl.TIMEOUT_MS, int(10_000 * options.timeout_s))
        curl.setopt(pycurl.LOW_SPEED_LIMIT, 1)
        curl.setopt(pycurl.LOW_SPEED_TIME, max(1, round(options.timeout_s)))
        curl.setopt(pycurl.USERAGENT, options.user_agent)
        curl.setopt(pycurl.CAINFO, options.ca_bundle)
        curl.setopt(pycurl.PROXY, options.proxy)
        curl.setopt(pycurl.PATH_AS_IS, 1)  # keys may have parts such as "..", and so they are signed

    def aim(self, request: Request, place: int, sign: Sign) -> None:
        self.place = place
        self.curl.setopt(pycurl.URL, request.url)
        headers = request.headers + sign(request)
        if headers:
            self.curl.setopt(pycurl.HTTPHEADER, headers)
        else:  # which an empty list would leave as it was
            self.curl.unsetopt(pycurl.HTTPHEADER)
        if isinstance(request, Get):
            self.curl.setopt(pycurl.RANGE, f"{request.start}-{request.end - 1}")
            most_bytes = max(request.end - request.start, _EXPLANATION_BYTES)
            if most_bytes != self._most_bytes:
                self.curl.setopt(pycurl.MAXFILESIZE, most_bytes)
                self._most_bytes = most_bytes
        else:
            self.curl.setopt(pycurl.POSTFIELDS, request.body)
            self.curl.setopt(pycurl.CUSTOMREQUEST, "PUT")
            self.curl.setopt(pycurl.HEADERFUNCTION, self.headers.append)

    def taken(self) -> tuple[bytes, tuple[bytes, ...]]:
        """Body and kept headers of the answer."""
        taken = b"".join(self.pieces), tuple(self.headers)
        self.pieces.clear()
        self.headers.clear()
        return taken


class _Multi:
    """A multi handle of libcurl and its connections, used by one thread at a time."""

    def __init__(self, options: CurlOptions, permits: SimpleQueue[None]) -> None:
        self._options, self._permits = options, permits
        self._handle = pycurl.CurlMulti()
        self._idle: dict[type[Request], list[_Transfer]] = {Get: [], Put: []}
        self._active: dict[pycurl.Curl, _Transfer] = {}

    def keep(self, num_connections: int) -> None:
        """How many connections stay open."""
        self._handle.setopt(pycurl.M_MAXCONNECTS, num_connections)

    def fetch(self, requests: Sequence[Request], sign: Sign) -> list[Answer]:
        answers: dict[int, Answer] = {}
        begun_s = time.monotonic()
        waiting = list(enumerate(requests))[::-1]
        while waiting or self._active:
            # One with nothing under way waits for its turn; another goes on with what it has.
            while waiting and self._is_permitted():
                self._start(*waiting.pop(), sign)
            self._handle.perform()
            ended = list(self._ended())
            answers |= ended
            if self._active and not ended:
                self._wait()
            if len(self._active) > _FEW and not waiting:
                share_s = _GATHER_SHARE * (time.monotonic() - begun_s)
                time.sleep(min(max(_GATHER_AT_LEAST_S, share_s), _GATHER_AT_MOST_S))
        return [answers[place] for place in range(len(requests))]

    def close(self) -> None:
        """Give up what is under way."""
        for transfer in self._active.values():
            with suppress(pycurl.error):
                self._handle.remove_handle(transfer.curl)
            self._permits.put(None)
        self._active.clear()
        self._handle.close()

    def _is_permitted(self) -> bool:
        try:
            self._permits.get(block=not self._active)
        except Empty:
            return False
        return True

    def _start(self, place: int, request: Request, sign: Sign) -> None:
        idle = self._idle[type(request)]
        transfer = idle.pop() if idle else _Transfer(self._options, idle)
        self._active[transfer.curl] = transfer
        transfer.aim(request, place, sign)
        self._handle.add_handle(transfer.curl)

    def _ended(self) -> Iterator[tuple[int, Answer]]:
        more = True
        while more:
            left, well, badly = self._handle.info_read()
            more = bool(left)
            for curl in well:
                yield self._end(curl, 0, "")
            for curl, trouble, reason in badly:
                yield self._end(curl, trouble, reason)

    def _end(self, curl: pycurl.Curl, trouble: int, reason: str) -> tuple[int, Answer]:
        transfer = self._active.pop(curl)
        self._permits.put(None)
        self._handle.remove_handle(curl)
        transfer.idle.append(transfer)
        body, headers = transfer.taken()
        return transfer.place, Answer(curl.getinfo(pycurl.RESPONSE_CODE), body, trouble, reason, headers)

    def _wait(self) -> None:
        """Until a socket has something to say, or libcurl has something to do."""
        reading, writing, _ = self._handle.fdset()
        due_ms = self._handle.timeout()
        watched = len({*reading, *writing}) >= len(self._active)
        longest_s = _LONGEST_WAIT_S if watched else _WAIT_UNWATCHED_S
        select.select(reading, writing, [], longest_s if due_ms < 0 else min(longest_s, due_ms / 1000))
