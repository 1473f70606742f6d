"""What both stores promise alike."""

import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from eosin.errors import UserError
from eosin.storage import ByteRange, NotFound, ObjectChanged, PreconditionFailed, Store, open_store
from eosin.storage.range_file import RangeFile
from tests.support.counting import CountingStore

_AWKWARD_KEYS = [
    "plain", "with space", "ünï/çødé/日本", "a%20b", "a+b", "a#b?c=d&e", "dots...txt", "tail./x", "(1)[2]*",
    "quote'\"q", "comma,semi;colon:", "emoji-🧫", "new\nline", "deep/" * 12 + "leaf",
]  # fmt: skip


def test_what_was_put_is_got_back_whole(store: Store) -> None:
    for size_bytes in (0, 1, 70_000):
        data = random.Random(size_bytes).randbytes(size_bytes)
        published = store.put("folder/object", data)
        assert store.get("folder/object") == data
        assert store.head("folder/object").etag == published.etag
        assert (published.key, published.size_bytes) == ("folder/object", size_bytes)


@pytest.mark.parametrize("key", _AWKWARD_KEYS)
def test_awkward_keys_round_trip_through_every_method(store: Store, key: str, tmp_path: Path) -> None:
    etag = store.put(key, b"0123456789").etag
    assert store.get(key) == b"0123456789"
    assert store.get_ranges([ByteRange(key, 2, 3, etag)]) == [b"234"]
    assert [item.key for item in store.list()] == [key]
    assert store.download(key, tmp_path / "down").etag == etag
    store.delete([key])
    assert not store.exists(key)


def test_a_missing_object_is_not_found_and_named(store: Store, tmp_path: Path) -> None:
    store.put("other", b"x")
    for ask in (
        lambda: store.get("no/such"),
        lambda: store.head("no/such"),
        lambda: store.get_ranges([ByteRange("other", 0, 1), ByteRange("no/such", 0, 1)]),
        lambda: store.download("no/such", tmp_path / "down"),
    ):
        with pytest.raises(NotFound) as caught:
            ask()
        assert caught.value.args == ("no/such",)
    assert not store.exists("no/such")
    assert not (tmp_path / "down").exists()


def test_a_folder_of_objects_is_no_object(store: Store) -> None:
    store.put("a/b", b"x")
    assert not store.exists("a")
    with pytest.raises(NotFound):
        store.get("a")


def test_ranges_come_in_order_and_short_only_at_the_end(store: Store) -> None:
    draws = random.Random(3)
    contents = {f"k{number}": draws.randbytes(draws.randrange(1, 300_000)) for number in range(5)}
    etags = {key: store.put(key, data).etag for key, data in contents.items()}
    ranges = []
    for _ in range(300):
        key = draws.choice(list(contents))
        start = draws.randrange(len(contents[key]) + 1000)
        length = draws.choice([0, 1, 17, 14_000, 100_000])
        ranges.append(ByteRange(key, start, length, draws.choice([None, etags[key]])))
    got = store.get_ranges(ranges)
    for item, data in zip(ranges, got, strict=True):
        assert data == contents[item.key][item.start : item.start + item.length], item
    assert store.get_ranges([]) == []


def test_a_pinned_range_refuses_another_version_of_the_same_size(store: Store) -> None:
    old = store.put("k", b"a" * 200_000).etag
    store.put("k", b"b" * 200_000)
    many = [ByteRange("k", start, 10, old) for start in range(0, 200_000, 60_000)]
    for ranges in ([ByteRange("k", 5, 10, old)], many):
        with pytest.raises(ObjectChanged):
            store.get_ranges(ranges)
    assert store.get_ranges([ByteRange("k", 5, 3)]) == [b"bbb"]


def test_versions_written_in_quick_succession_have_different_etags(store: Store) -> None:
    etags = [store.put("k", bytes([number])).etag for number in range(30)]
    assert len(set(etags)) == 30


def test_conditional_puts(store: Store) -> None:
    first = store.put("k", b"1", if_none_match=True)
    with pytest.raises(PreconditionFailed):
        store.put("k", b"2", if_none_match=True)
    second = store.put("k", b"2", if_match=first.etag)
    with pytest.raises(PreconditionFailed):
        store.put("k", b"3", if_match=first.etag)
    with pytest.raises(PreconditionFailed):
        store.put("absent", b"3", if_match=second.etag)
    assert store.get("k") == b"2"
    assert not store.exists("absent")


def test_of_many_threads_that_create_one_object_exactly_one_wins(store: Store) -> None:
    def create(number: int) -> bool:
        try:
            store.put("claim", str(number).encode(), if_none_match=True)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        won = list(pool.map(create, range(12)))
    assert won.count(True) == 1
    assert store.get("claim") == str(won.index(True)).encode()


def test_no_increment_is_lost_among_threads_that_swap(store: Store) -> None:
    store.put("counter", b"0")

    def increment(_: int) -> None:
        while True:
            etag = store.head("counter").etag
            try:
                now = int(store.get_ranges([ByteRange("counter", 0, 10, etag)])[0])
                store.put("counter", str(now + 1).encode(), if_match=etag)
                return
            except (PreconditionFailed, ObjectChanged):
                continue

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(increment, range(20)))
    assert store.get("counter") == b"20"


def test_listing_is_in_key_order_whatever_the_folders(store: Store) -> None:
    keys = ["a/1", "a-b", "a/b/c", "a", "b", "a.b", "a0", "ab/x", "é/1", "é", "zz/ü", "A"]
    keys = [key for key in keys if key not in ("a", "é")]  # a file cannot stand where a folder does
    for key in keys:
        store.put(key, b"x")
    assert [item.key for item in store.list()] == sorted(keys)
    assert [item.key for item in store.list("a")] == [key for key in sorted(keys) if key.startswith("a")]
    assert [item.key for item in store.list("a/")] == ["a/1", "a/b/c"]
    assert list(store.list("nothing/here")) == []


def test_folders_are_named_without_what_lies_in_them(store: Store) -> None:
    for key in ("runs/b/x/y", "runs/b/z", "runs/a-b/x", "runs/é/x", "runs/plain", "other/x"):
        store.put(key, b"x")
    assert list(store.folders("runs/")) == ["a-b", "b", "é"]
    assert list(store.folders()) == ["other", "runs"]
    assert list(store.folders("nothing/")) == []


def test_a_listing_goes_past_one_page(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.put(f"n/{number:05d}", b""), range(1101)))
    listed = [item.key for item in store.list("n/")]
    assert listed == [f"n/{number:05d}" for number in range(1101)]
    store.delete(listed)
    assert list(store.list()) == []


def test_deleting_twice_is_no_error(store: Store) -> None:
    store.put("a/b", b"x")
    store.delete(["a/b", "a/c"])
    store.delete(["a/b"])
    store.delete([])
    assert not store.exists("a/b")


def test_a_large_file_goes_up_and_comes_down_whole(store: Store, tmp_path: Path) -> None:
    source, target = tmp_path / "source file", tmp_path / "new folder" / "target"
    source.write_bytes(random.Random(1).randbytes(1 << 20) * 37 + b"tail")
    published = store.put_file("big é", source)
    assert published.size_bytes == source.stat().st_size
    assert store.download("big é", target) == store.head("big é")
    assert target.read_bytes() == source.read_bytes()
    assert store.get_ranges([ByteRange("big é", 37 << 20, 10, published.etag)]) == [b"tail"]


def test_large_bytes_are_published_whole_and_conditionally(store: Store) -> None:
    data = random.Random(9).randbytes(1 << 20) * 33
    first = store.put("big", data, if_none_match=True)
    assert store.get("big") == data
    with pytest.raises(PreconditionFailed):
        store.put("big", data[1:], if_none_match=True)
    store.put("big", data[2:], if_match=first.etag)
    with pytest.raises(PreconditionFailed):
        store.put("big", data[3:], if_match=first.etag)
    assert store.head("big").size_bytes == len(data) - 2


def test_a_file_that_cannot_be_read_is_the_users_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file") as caught:
        store.put_file("k", tmp_path / "no such file")
    assert str(tmp_path) in caught.value.message
    assert not store.exists("k")


def test_a_store_survives_pickling(store: Store) -> None:
    store.put("k", b"x")
    assert pickle.loads(pickle.dumps(store)).get("k") == b"x"  # noqa: S301


def test_a_store_at_a_prefix_sees_only_what_lies_under_it(store: Store, store_uri: str) -> None:
    store.put("runs/a/x", b"1")
    store.put("runs/ab/x", b"2")
    inner = open_store(f"{store_uri}/runs/a/")
    assert [item.key for item in inner.list()] == ["x"]
    assert inner.get("x") == b"1"


def test_a_range_file_reads_as_the_bytes_do(store: Store) -> None:
    data = random.Random(5).randbytes(500_123)
    etag = store.put("k", data).etag
    file = RangeFile(store, "k", len(data), etag, block_bytes=4096, max_blocks=8)
    draws = random.Random(6)
    for _ in range(60):
        start, size = draws.randrange(len(data) + 10), draws.choice([0, 1, 4096, 10_000, 100_000])
        assert file.seek(start) == start
        assert file.read(size) == data[start : start + size]
    before = file.num_requests
    file.seek(start)
    file.read(1)
    file.seek(start)
    file.read(1)
    assert file.num_requests - before <= 1
    store.put("k", data[:-1] + b"?")
    file.seek(0)
    with pytest.raises(ObjectChanged):
        file.read()


def test_a_range_file_reads_ahead_of_who_reads_on(store: Store) -> None:
    data = random.Random(7).randbytes(64 * 4096)
    file = RangeFile(store, "k", len(data), store.put("k", data).etag, block_bytes=4096)
    assert b"".join(file.read(1000) for _ in range(263)) == data
    assert file.num_requests <= 8 and file.num_bytes == len(data)
    apart = RangeFile(store, "k", len(data), block_bytes=4096)
    for start in (60 * 4096, 20 * 4096, 40 * 4096):
        apart.seek(start)
        apart.read(10)
    assert (apart.num_requests, apart.num_bytes) == (3, 3 * 4096), "who leaps reads nothing in vain"
    apart.prefetch(10, 62 * 4096, -5, 10**9)
    apart.seek(4096)
    assert (apart.read(4096), apart.num_requests) == (data[4096:8192], 5)
    apart.prefetch(4096 + 10)
    assert apart.num_requests == 5, "what begins in a block that is held needs no other"


def test_a_range_file_serves_ranges_from_what_it_holds(store: Store) -> None:
    data = random.Random(8).randbytes(16 * 4096)
    etag = store.put("k", data).etag
    other = store.put("other", data[::-1]).etag
    counted = CountingStore(store)
    file = RangeFile(counted, "k", len(data), etag, block_bytes=4096)
    file.prefetch(0, 8 * 4096)
    assert len(counted.ranges) == 2
    counted.ranges.clear()
    inside = [ByteRange("k", 100, 5000, etag), ByteRange("k", 9 * 4096, 4096, etag)]
    assert file.get_ranges(inside) == [data[each.start :][: each.length] for each in inside]
    assert not counted.ranges
    outside = [ByteRange("k", 8190, 10, etag), ByteRange("other", 100, 7, other), ByteRange("k", 100, 7)]
    found = file.get_ranges([inside[0], *outside])
    assert found == [data[100:5100], data[8190:8200], data[::-1][100:107], data[100:107]]
    assert counted.ranges == outside, "of another object, another version or another place"
