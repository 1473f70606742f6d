"""Fixtures that every test may use: a real S3 server, and a bucket of one's own."""

import itertools
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from eosin.demo.server import LocalS3

_numbers = itertools.count()

# How fast a shared machine is today says nothing of the code.
settings.register_profile("eosin", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("eosin")


@pytest.fixture(autouse=True)
def _arithmetic_stays_whole() -> Iterator[None]:
    """A test that leaves denormals flushed changes the results of those after it, so it fails itself."""
    yield
    assert sys.float_info.min / 2 > 0, "this test left the processor flushing denormals to zero"


@pytest.fixture(autouse=True, scope="session")
def _shared_memory_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs that a test kills leave their snapshots here, and indexes their columns, not on the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EOSIN_SHM_DIR", str(tmp_path_factory.mktemp("shm")))
        patch.setenv("EOSIN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    """A SeaweedFS server of this test session (of this worker under xdist)."""
    with LocalS3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket_uri(s3: LocalS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`s3://…` of an empty bucket, with the environment pointing at its server; deleted afterwards."""
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    uri = f"s3://test-{next(_numbers):04d}"
    s3.ensure_bucket(uri)
    yield uri
    _delete_bucket(s3, uri.removeprefix("s3://"))


def _delete_bucket(s3: LocalS3, bucket: str) -> None:
    boto = s3.boto()
    for page in boto.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        keys = [{"Key": item["Key"]} for item in page.get("Contents", [])]
        if keys:
            boto.delete_objects(Bucket=bucket, Delete={"Objects": keys})
    boto.delete_bucket(Bucket=bucket)


@pytest.fixture
def levels_of_several_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For generated slides whose levels show several pictures: readers of another level differ."""
    monkeypatch.setattr("eosin.index.publish.chosen_to_verify", lambda rows: [])
