"""An HTTP proxy in front of an S3 endpoint that misbehaves by a plan."""

import http.client
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>not yours</Message></Error>"
_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>slower</Message></Error>"


class Fault(Enum):
    """What happens to one request."""

    NONE = "passes"
    DELAY = "waits before it passes"
    SLOW_DOWN = "is answered 503 SlowDown and not passed on"
    RESET = "has its connection reset and is not passed on"
    LOSE_ANSWER = "is carried out, but the connection is reset instead of the answer"
    TRUNCATE = "is answered with half the body, then the connection ends"
    DENY = "is answered 403 AccessDenied and not passed on"
    SHORT = "is answered with half the body and headers that agree with it"


Plan = Callable[[str, str], Fault]
"""From method and path of a request to its fault; called once a request, in order of arrival."""


def script(*faults: Fault, methods: str = "GET PUT POST DELETE HEAD") -> Plan:
    """The first requests of `methods` meet `faults` one after another, all later ones none."""
    left = list(faults)

    def plan(method: str, path: str) -> Fault:
        return left.pop(0) if left and method in methods.split() else Fault.NONE

    return plan


def seeded(seed: int, rate: float, *faults: Fault) -> Plan:
    """Each request meets one of `faults` with probability `rate`."""
    draws = random.Random(seed)

    def plan(method: str, path: str) -> Fault:
        return draws.choice(faults) if draws.random() < rate else Fault.NONE

    return plan


class FaultProxy:
    """`with FaultProxy(endpoint_url, plan) as proxy:` listens on loopback at `proxy.endpoint_url`.

    `seen` lists (method, path, fault) of all requests so far, `headers` theirs. With `tls` it speaks
    HTTPS to the client.
    """

    def __init__(
        self, endpoint_url: str, plan: Plan, *, delay_s: float = 0.2, tls: ssl.SSLContext | None = None
    ) -> None:
        self.plan = plan
        self.delay_s = delay_s
        self.seen: list[tuple[str, str, Fault]] = []
        self.headers: list[dict[str, str]] = []
        self._scheme = "https" if tls else "http"
        self.upstream = urlsplit(endpoint_url).netloc
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # its own prints
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )

    @property
    def endpoint_url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def decide(self, method: str, path: str) -> Fault:
        """The fault of the next request."""
        with self._lock:
            fault = self.plan(method, path)
            self.seen.append((method, path, fault))
            return fault

    def __enter__(self) -> Self:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            proxy.headers.append(dict(self.headers.items()))
            fault = proxy.decide(self.command, self.path)
            if fault is Fault.RESET:
                self._reset()
            elif fault is Fault.SLOW_DOWN:
                self._refuse(503, _SLOW_DOWN)
            elif fault is Fault.DENY:
                self._refuse(403, _DENIED)
            else:
                if fault is Fault.DELAY:
                    time.sleep(proxy.delay_s)
                self._pass_on(body, fault)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815

        def _pass_on(self, body: bytes, fault: Fault) -> None:
            status, headers, answer = self._ask(body)
            length = int(headers.pop("Content-Length", len(answer)))
            if fault is Fault.LOSE_ANSWER:
                self._reset()
                return
            if fault in (Fault.TRUNCATE, Fault.SHORT):
                answer = answer[: len(answer) // 2]
            self._answer(status, headers, answer, len(answer) if fault is Fault.SHORT else length)
            if fault is Fault.TRUNCATE:
                self.wfile.flush()
                self._reset()

        def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            upstream = http.client.HTTPConnection(proxy.upstream, timeout=60)
            try:
                upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in ("connection", "expect"):
                        upstream.putheader(name, value)
                upstream.endheaders(body or None)
                answer = upstream.getresponse()
                dropped = ("connection", "transfer-encoding")
                headers = {name: value for name, value in answer.getheaders() if name.lower() not in dropped}
                return answer.status, headers, answer.read()
            finally:
                upstream.close()

        def _refuse(self, status: int, body: bytes) -> None:
            self._answer(status, {"Content-Type": "application/xml"}, body, len(body))

        def _answer(self, status: int, headers: dict[str, str], body: bytes, length: int) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _reset(self) -> None:
            # Closing with a linger time of zero sends RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RD)
            self.connection.close()

        def log_message(self, format: str, *args: object) -> None:
            return

        def finish(self) -> None:
            try:
                super().finish()
            except (OSError, ValueError):
                return

    return Handler
