"""Requests planned for ranges serve each range exactly, and waste no more than the gap allows."""

from hypothesis import given
from hypothesis import strategies as st

from eosin.storage import ByteRange
from eosin.storage.ranged_reads import cut_body, plan_requests

RANGES = st.lists(
    st.builds(
        ByteRange,
        key=st.sampled_from(["a", "b"]),
        start=st.integers(0, 3000),
        length=st.integers(0, 500),
        etag=st.sampled_from([None, "1", "2"]),
    ),
    max_size=30,
)


@given(RANGES, st.integers(0, 200), st.integers(1, 2000))
def test_every_range_is_served_exactly(ranges: list[ByteRange], gap_bytes: int, max_bytes: int) -> None:
    content = {key: bytes(hash((key, at)) & 0xFF for at in range(2500)) for key in "ab"}
    served: dict[int, bytes] = {}
    for request in plan_requests(ranges, gap_bytes=gap_bytes, max_bytes=max_bytes):
        for position, piece in cut_body(request, content[request.key][request.start : request.end], ranges):
            assert position not in served
            assert (ranges[position].key, ranges[position].etag) == (request.key, request.etag)
            served[position] = piece
    for position, item in enumerate(ranges):
        wanted = content[item.key][item.start : item.start + item.length]
        assert served.get(position, b"") == wanted


@given(RANGES, st.integers(0, 200), st.integers(1, 2000))
def test_no_request_holds_a_wider_gap_or_grows_too_long(
    ranges: list[ByteRange], gap_bytes: int, max_bytes: int
) -> None:
    for request in plan_requests(ranges, gap_bytes=gap_bytes, max_bytes=max_bytes):
        spans = sorted((ranges[at].start, ranges[at].start + ranges[at].length) for at in request.members)
        reached = spans[0][0]
        for start, end in spans:
            assert start - reached <= gap_bytes
            reached = max(reached, end)
        assert (request.start, request.end) == (spans[0][0], reached)
        longest = max(end - start for start, end in spans)
        assert request.end - request.start <= max(max_bytes, longest)


def test_neighbours_share_a_request_and_strangers_do_not() -> None:
    near = [ByteRange("a", 0, 10), ByteRange("a", 10, 10), ByteRange("a", 120, 10)]
    assert len(plan_requests(near, gap_bytes=100)) == 1
    assert len(plan_requests(near, gap_bytes=99)) == 2
    apart = [ByteRange("a", 0, 10, "1"), ByteRange("a", 10, 10, "2"), ByteRange("b", 20, 10, "1")]
    assert len(plan_requests(apart, gap_bytes=1000)) == 3
