"""An S3 that is slow, throttles, resets connections, loses answers or cuts bodies short."""

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from eosin.demo.server import LocalS3
from eosin.errors import TransientError
from eosin.storage import ByteRange, NotFound, PreconditionFailed, Store, open_store
from tests.support.faults import Fault, FaultProxy, script, seeded

pytestmark = pytest.mark.usefixtures("quick_retries")
DATA = random.Random(0).randbytes(300_000)
HARMS = [Fault.SLOW_DOWN, Fault.RESET, Fault.LOSE_ANSWER, Fault.TRUNCATE, Fault.DELAY]


@pytest.fixture
def proxy(s3: LocalS3, bucket_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    open_store(bucket_uri).put("k", DATA)
    with FaultProxy(s3.endpoint_url, script()) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint_url)
        yield proxy


@pytest.fixture
def store(proxy: FaultProxy, bucket_uri: str) -> Store:
    return open_store(bucket_uri)


@pytest.mark.parametrize("fault", [*HARMS, Fault.SHORT])
def test_reads_come_whole_through_a_fault(store: Store, proxy: FaultProxy, fault: Fault) -> None:
    etag = store.head("k").etag
    ranges = [ByteRange("k", start, 1000, etag) for start in range(0, 300_000, 70_000)]
    proxy.plan = script(fault, fault, fault, methods="GET")
    assert store.get_ranges(ranges) == [DATA[item.start : item.start + 1000] for item in ranges]
    if fault is Fault.SHORT:
        return  # without a range no reader can tell that headers and body agree on too little
    proxy.plan = script(fault, methods="GET")
    assert store.get("k") == DATA
    proxy.plan = script(fault, methods="HEAD")
    assert store.head("k").size_bytes == len(DATA)


@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.RESET, Fault.LOSE_ANSWER])
def test_a_creation_whose_answer_got_lost_is_told_from_one_that_lost(
    store: Store, proxy: FaultProxy, fault: Fault
) -> None:
    proxy.plan = script(fault, methods="PUT")
    published = store.put("new", b"mine", if_none_match=True)
    assert published.etag == store.head("new").etag
    proxy.plan = script(fault, methods="PUT")
    with pytest.raises(PreconditionFailed):
        store.put("new", b"mine", if_none_match=True)
    proxy.plan = script(fault, methods="PUT")
    swapped = store.put("new", b"later", if_match=published.etag)
    assert store.head("new").etag == swapped.etag
    proxy.plan = script(fault, methods="PUT")
    with pytest.raises(PreconditionFailed):
        store.put("new", b"too late", if_match=published.etag)
    assert store.get("new") == b"later"


def test_a_large_upload_survives_the_loss_of_any_answer(
    store: Store, proxy: FaultProxy, tmp_path: Path
) -> None:
    source = tmp_path / "big"
    source.write_bytes(random.Random(2).randbytes(33 << 20))
    lost = {"POST": 0, "PUT": 0}

    def first_of_each(method: str, path: str) -> Fault:
        lost[method] = lost.get(method, 0) + 1
        # The first POST begins the upload, the second publishes it.
        return Fault.LOSE_ANSWER if (method, lost[method]) in (("PUT", 1), ("POST", 2)) else Fault.NONE

    proxy.plan = first_of_each
    published = store.put_file("big", source)
    assert published.etag == store.head("big").etag
    store.download("big", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == source.read_bytes()


def test_a_bad_hour_costs_time_but_no_byte(store: Store, proxy: FaultProxy) -> None:
    proxy.plan = seeded(7, 0.15, Fault.SLOW_DOWN, Fault.RESET, Fault.TRUNCATE, Fault.LOSE_ANSWER)
    draws = random.Random(8)

    def work(number: int) -> None:
        body = random.Random(number).randbytes(2000)
        store.put(f"o{number}", body, if_none_match=True)
        start = draws.randrange(1500)
        assert store.get_ranges([ByteRange(f"o{number}", start, 500)]) == [body[start : start + 500]]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(40)))
    assert [item.key for item in store.list("o")] == sorted(f"o{number}" for number in range(40))


def test_what_never_stops_failing_becomes_a_transient_error_in_bounded_time(
    proxy: FaultProxy, bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EOSIN_RETRY_MAX_ATTEMPTS", "3")
    store = open_store(bucket_uri)
    proxy.plan = seeded(0, 1.0, Fault.SLOW_DOWN)
    for ask in (lambda: store.get("k"), lambda: store.get_ranges([ByteRange("k", 0, 1)])):
        proxy.seen.clear()
        with pytest.raises(TransientError, match=r"3 tries") as caught:
            ask()
        assert f"{bucket_uri}/k" in caught.value.message
        assert len(proxy.seen) == 3


def test_a_server_that_hangs_is_given_up(
    proxy: FaultProxy, bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EOSIN_S3_TIMEOUT_S", "0.3")
    monkeypatch.setenv("EOSIN_RETRY_MAX_ATTEMPTS", "2")
    proxy.delay_s = 60.0
    proxy.plan = seeded(0, 1.0, Fault.DELAY)
    store = open_store(bucket_uri)
    for ask in (lambda: store.get("k"), lambda: store.get_ranges([ByteRange("k", 0, 1)])):
        begun_s = time.monotonic()
        with pytest.raises(TransientError):
            ask()
        assert time.monotonic() - begun_s < proxy.delay_s / 2


def test_what_will_not_change_is_not_tried_again(store: Store, proxy: FaultProxy) -> None:
    with pytest.raises(NotFound):
        store.get("absent")
    assert [method for method, _, _ in proxy.seen].count("GET") == 1


def test_an_endpoint_that_is_down_is_named(bucket_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("EOSIN_RETRY_MAX_ATTEMPTS", "2")
    store = open_store(bucket_uri)
    for ask in (
        lambda: store.get("k"),
        lambda: store.put("k", b""),
        lambda: list(store.list()),
        lambda: store.get_ranges([ByteRange("k", 0, 1)]),
    ):
        with pytest.raises(TransientError, match=r"http://127\.0\.0\.1:9 does not answer"):
            ask()
