"""Rights that are missing: for one slide its own affair, for all of them one error that says so."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import eosin.index.scan as scan_module
from eosin.demo.server import LocalS3
from eosin.errors import UserError
from eosin.index.scan import scan_shard
from eosin.storage import open_store
from tests.support.counting import CountingStore
from tests.support.faults import Fault, FaultProxy
from tests.support.indexing import (
    LOG,
    config_for,
    count_stores,
    index,
    make_slides,
    rows_of,
    statuses,
    upload,
)

pytestmark = pytest.mark.e2e


@pytest.fixture
def counted() -> Iterator[list[CountingStore]]:
    yield from count_stores()


@pytest.fixture
def bucket(tmp_path: Path, bucket_uri: str) -> str:
    upload(make_slides(tmp_path / "slides", 3), f"{bucket_uri}/slides")
    return bucket_uri


def deny(part: str, s3: LocalS3, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """A proxy that answers 403 to reads of objects whose path has `part`."""

    def plan(method: str, path: str) -> Fault:
        return Fault.DENY if method == "GET" and part in path and "list-type" not in path else Fault.NONE

    proxy = FaultProxy(s3.endpoint_url, plan)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint_url)
    return proxy


def test_one_slide_that_may_not_be_read_is_a_row_and_is_read_once_it_may(
    bucket: str, s3: LocalS3, monkeypatch: pytest.MonkeyPatch, counted: list[CountingStore]
) -> None:
    config = config_for(f"{bucket}/slides", f"{bucket}/index")
    with monkeypatch.context() as patched, deny("slides/slide-1.svs", s3, patched):
        assert index(config, 2).reasons == {"denied": 1}
        row = rows_of(f"{bucket}/index")["slide-1.svs"]
        assert row.status == "denied" and "slide-1.svs: permission denied" in row.detail
    counted.clear()
    assert index(config, 2).reasons == {}
    assert set(statuses(f"{bucket}/index").values()) == {"ok"}
    read = {each.key for store in counted for each in store.ranges if each.key.endswith(".svs")}
    assert read == {"slide-1.svs"}, "what could be read before is not read again"


def test_where_no_slide_may_be_read_one_error_says_so(
    bucket: str, s3: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(f"{bucket}/slides", f"{bucket}/index")
    with deny("slides/slide-", s3, monkeypatch), pytest.raises(UserError, match="3 denied") as caught:
        index(config)
    assert "the right to read" in caught.value.hint


def test_a_long_listing_of_which_nothing_may_be_read_is_not_gone_through_to_the_end(
    bucket: str, s3: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "_UNITS_A_PART", 2)
    monkeypatch.setattr("eosin.index.listing._MOST_LOOKED_AT", 1)
    config = config_for(f"{bucket}/slides", f"{bucket}/index")
    for i in range(3, 8):
        open_store(f"{bucket}/slides").put(f"slide-{i}.svs", bytes(200))
    with deny("slides/slide-", s3, monkeypatch) as proxy:
        with pytest.raises(UserError, match=r"none of 2 slides in .* may be read: .*permission denied"):
            scan_shard(config, 0, 1, LOG)
        read = {path.rpartition("/")[2] for method, path, _ in proxy.seen if method == "GET"}
        assert "slide-1.svs" in read
        assert not read & {f"slide-{i}.svs" for i in range(4, 8)}, "one part is begun before one has ended"


def test_a_wrong_secret_is_one_error_before_any_slide(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not it")
    with pytest.raises(UserError, match="secret key is wrong"):
        scan_shard(config_for(f"{bucket}/slides", f"{bucket}/index"), 0, 1, LOG)


def test_an_index_that_may_not_be_written_to_is_no_fault_of_the_slides(
    bucket: str, s3: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(method: str, path: str) -> Fault:
        return Fault.DENY if method == "PUT" and "/tiles/" in path else Fault.NONE

    with FaultProxy(s3.endpoint_url, plan) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint_url)
        with pytest.raises(UserError, match="permission denied"):
            scan_shard(config_for(f"{bucket}/slides", f"{bucket}/index"), 0, 1, LOG)
