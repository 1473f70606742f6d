"""Loading, publishing once and updating records, on both stores and by many at once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest

from eosin.errors import PermanentError, TransientError
from eosin.records import load_record, publish_once, update_record
from eosin.records.base import Record
from eosin.storage import Store, open_store

KEY = "folder/counter.json"


class Counter(Record):
    value: int


class Kept(Record):
    unreadable_hint: ClassVar[str] = "ask for {source} back"

    value: int


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    uri = str(tmp_path) if request.param == "file" else f"{request.getfixturevalue('bucket_uri')}/run"
    return open_store(uri)


def at_once(work: Callable[[int], Counter | None]) -> list[Counter | None]:
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(work, range(8)))


def test_absent_record_is_none(store: Store) -> None:
    assert load_record(Counter, store, KEY) is None


def test_first_publisher_wins_and_all_return_what_it_wrote(store: Store) -> None:
    found = at_once(lambda value: publish_once(store, KEY, Counter(value=value)))
    assert set(found) == {load_record(Counter, store, KEY)}


def test_no_update_is_lost(store: Store) -> None:
    def increment(found: Counter | None) -> Counter:
        return Counter(value=1 if found is None else found.value + 1)

    done = 0
    for _ in range(3):
        for result in at_once(lambda _: _attempted(store, increment)):
            done += result is not None
    assert done >= 3
    assert load_record(Counter, store, KEY) == Counter(value=done)


def _attempted(store: Store, change: Callable[[Counter | None], Counter]) -> Counter | None:
    """None where seven others were always faster."""
    try:
        return update_record(Counter, store, KEY, change)
    except TransientError:
        return None


def test_change_that_returns_none_leaves_the_record(store: Store) -> None:
    publish_once(store, KEY, Counter(value=7))
    etag = store.head(KEY).etag
    assert update_record(Counter, store, KEY, lambda found: None) == Counter(value=7)
    assert store.head(KEY).etag == etag


def test_update_meets_what_others_wrote_meanwhile(store: Store) -> None:
    seen: list[Counter | None] = []

    def change(found: Counter | None) -> Counter:
        seen.append(found)
        if len(seen) == 1:
            store.put(KEY, Counter(value=40).to_json())
        return Counter(value=2 + (found.value if found else 0))

    assert update_record(Counter, store, KEY, change) == Counter(value=42)
    assert seen == [None, Counter(value=40)]


def test_record_that_is_replaced_for_ever_is_transient(store: Store) -> None:
    def change(found: Counter | None) -> Counter:
        store.put(KEY, Counter(value=1 + (found.value if found else 0)).to_json())
        return Counter(value=0)

    with pytest.raises(TransientError, match=KEY):
        update_record(Counter, store, KEY, change)


def test_record_deleted_between_two_requests_is_published_again(tmp_path: Path) -> None:
    class Forgetful:
        """A store that loses the object once, right after it has refused a put."""

        def __init__(self, inner: Store) -> None:
            self.inner, self.lost = inner, False

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

        def get(self, key: str) -> bytes:
            if not self.lost:
                self.lost = True
                self.inner.delete([key])
            return self.inner.get(key)

    inner = open_store(str(tmp_path))
    inner.put(KEY, Counter(value=1).to_json())
    store: Store = Forgetful(inner)  # type: ignore[assignment]  # the rest of `Store` by delegation
    assert publish_once(store, KEY, Counter(value=2)) == Counter(value=2)


@pytest.mark.parametrize("data", [b"", b"{}", b'{"value": "x"}', b"\xff"])
def test_other_bytes_are_refused_by_all_three(store: Store, data: bytes) -> None:
    store.put(KEY, data)
    for work in (
        lambda: load_record(Kept, store, KEY),
        lambda: publish_once(store, KEY, Kept(value=1)),
        lambda: update_record(Kept, store, KEY, lambda found: Kept(value=1)),
    ):
        with pytest.raises(PermanentError, match=KEY) as raised:
            work()
        assert raised.value.hint == f"ask for {store.uri}/{KEY} back"
    assert store.get(KEY) == data
