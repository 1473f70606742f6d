"""Byte ranges over libcurl: signatures as botocore makes them, and servers and machines that are odd."""

import hashlib
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from eosin.errors import PermanentError
from eosin.storage import ByteRange, Store, curl_client, open_store

SECRET = "s3cr3t/with+signs="


class Recorder(BaseHTTPRequestHandler):
    """Answers every GET with `length` bytes and `status`; keeps what was asked, and how many at once."""

    protocol_version = "HTTP/1.1"
    asked: list[tuple[str, dict[str, str]]]
    ports: set[int]
    together: threading.Barrier | None = None
    status, length = 206, 8
    now = most = 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        cls: Any = type(self)
        with cls.lock:
            cls.now += 1
            cls.most = max(cls.most, cls.now)
        cls.ports.add(self.client_address[1])
        if cls.together is not None:
            cls.together.wait()
        cls.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        self.send_response(self.status)
        self.send_header("Content-Length", str(self.length))
        self.end_headers()
        with cls.lock:
            cls.now -= 1
        self.wfile.write(b"x" * self.length)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        type(self).asked.append((self.path, {**headers, "body": body.decode("latin-1")}))
        self.send_response(200)
        self.send_header("ETag", '"e"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Recorder]]:
    class Mine(Recorder):
        asked: list[tuple[str, dict[str, str]]] = []
        ports: set[int] = set()

    monkeypatch.setattr(ThreadingHTTPServer, "request_queue_size", 128)
    with ThreadingHTTPServer(("127.0.0.1", 0), Mine) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{running.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_REGION", "eu-central-1")
        yield Mine
        running.shutdown()


@pytest.mark.parametrize("token", ["", "a+token/with=signs"])
@pytest.mark.parametrize(
    "key", ["plain.svs", "a b/Ünï+(1)[2]*~'!.svs", "100%25/é?q=1&r#s", "a//b", "a/../b/./c"]
)
def test_requests_are_signed_as_botocore_signs_them(
    server: type[Recorder], key: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    assert open_store("s3://bucket/p").get_ranges([ByteRange(key, 4, 8, "etag")]) == [b"x" * 8]
    ((path, headers),) = server.asked
    assert headers["range"] == "bytes=4-11"
    assert headers["if-match"] == '"etag"'
    assert headers.get("x-amz-security-token", "") == token
    assert headers["authorization"].rpartition("=")[2] == _signature(path, headers, token)


@pytest.mark.parametrize("token", ["", "a+token/with=signs"])
@pytest.mark.parametrize("key", ["plain.tiles", "a b/Ünï+(1)[2]*~'!.jpg", "100%25/é?q=1&r#s", "a/../b/./c"])
def test_puts_are_signed_as_botocore_signs_them(
    server: type[Recorder], key: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    data = bytes(range(256)) * 300
    made = open_store("s3://bucket/p").put(key, data)
    assert (made.key, made.size_bytes, made.etag) == (key, len(data), "e")
    ((path, headers),) = server.asked
    assert headers.pop("body").encode("latin-1") == data
    assert headers["user-agent"].startswith("eosin/"), "not by libcurl"
    assert headers["x-amz-content-sha256"] == hashlib.sha256(data).hexdigest()
    assert headers.get("x-amz-security-token", "") == token
    assert headers["authorization"].rpartition("=")[2] == _signature(path, headers, token, "PUT")


def test_a_signature_serves_a_key_for_a_minute_and_credentials_for_themselves(
    server: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(at_s: float, key: str, start: int, access_key: str = "AKID") -> tuple[str, str]:
        monkeypatch.setattr(time, "time", lambda: at_s)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", access_key)
        open_store("s3://bucket/p").get_ranges([ByteRange(key, start, 8, f"etag of {start}")])
        headers = server.asked[-1][1]
        return headers["x-amz-date"], headers["authorization"]

    date, first = ask(1_700_000_041, "a.svs", 0)
    assert date == "20231114T221400Z"
    assert ask(1_700_000_099, "a.svs", 100) == (date, first)
    assert ask(1_700_000_099, "b.svs", 100)[1] != first
    assert "Credential=OTHER/20231114/" in ask(1_700_000_099, "a.svs", 100, "OTHER")[1]
    assert ask(1_700_000_100, "a.svs", 0)[0] == "20231114T221500Z"


def _signature(path: str, headers: dict[str, str], token: str, method: str = "GET") -> str:
    """What botocore signs the same request with, over the headers that the request says are signed."""
    signed = headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert {"host", "x-amz-date", "x-amz-content-sha256"} <= set(signed)
    request = AWSRequest(method, f"http://{headers['host']}{path}", {name: headers[name] for name in signed})
    request.context["timestamp"] = headers["x-amz-date"]
    auth = S3SigV4Auth(Credentials("AKID", SECRET, token or None), "s3", "eu-central-1")
    canonical = "\n".join(
        [
            method,
            path,
            "",
            auth.canonical_headers(request.headers) + "\n",
            ";".join(sorted(signed)),
            headers["x-amz-content-sha256"],
        ]
    )
    return str(auth.signature(auth.string_to_sign(request, canonical), request))


@pytest.mark.parametrize("length", [2, 5000, 10_000_000])
def test_a_server_that_ignores_ranges_is_named_at_once(server: type[Recorder], length: int) -> None:
    server.status, server.length = 200, length
    with pytest.raises(PermanentError, match="something else") as caught:
        open_store("s3://bucket/p").get_ranges([ByteRange("k", 4, 8)])
    assert "ignores byte ranges" in caught.value.hint
    assert len(server.asked) == 1


def test_threads_together_send_no_more_at_once_than_the_process_may(
    server: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curl_client, "MAX_IN_FLIGHT", 3)
    monkeypatch.setenv("EOSIN_S3_TIMEOUT_S", "47")  # settings of its own, so clients of its own
    store = open_store("s3://bucket/p")
    ranges = [ByteRange("k", 100_000 * number, 8) for number in range(10)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(store.get_ranges, [ranges] * 8))
    assert found == [[b"x" * 8] * 10] * 8
    assert 1 <= server.most <= 3


def test_a_batch_finds_the_connections_of_the_one_before(
    server: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EOSIN_S3_TIMEOUT_S", "46")  # settings of its own, so clients of its own
    store = open_store("s3://bucket/p")
    server.together = threading.Barrier(6, timeout=30)
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(store.get_ranges, [[ByteRange("k", 0, 8)]] * 6))
    server.together = None
    ranges = [ByteRange("k", 100_000 * number, 8) for number in range(40)]
    store.get_ranges(ranges)
    before = server.ports.copy()
    store.get_ranges(ranges)
    assert server.ports == before


def test_a_process_with_many_open_files_reads_as_well(store_uri: str, store: Store) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= most < 3000:
        pytest.skip(f"this machine lets a process open {most} files, too few to try")
    store.put("k", bytes(range(200)))
    program = (
        "import resource, sys; from eosin.storage import ByteRange, open_store\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3000, 3000))\n"
        "held = [open('/dev/null') for _ in range(2000)]\n"
        "found = open_store(sys.argv[1]).get_ranges([ByteRange('k', at, 2) for at in range(150)])\n"
        "assert found == [bytes([at, at + 1]) for at in range(150)], found\n"
    )
    subprocess.run([sys.executable, "-c", program, store_uri], check=True, timeout=60)
