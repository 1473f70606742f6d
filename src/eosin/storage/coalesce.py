"""Which requests to send for a set of byte ranges. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from eosin.storage.base import ByteRange


@dataclass
class Request:
    """One ranged GET of bytes [start, end) of `key`; `members` are the positions it serves."""

    key: str
    etag: str | None
    start: int
    end: int
    members: list[int] = field(default_factory=list)


def plan_requests(ranges: Sequence[ByteRange], *, gap_bytes: int, max_bytes: int = 16 << 20) -> list[Request]:
    """Requests that serve all non-empty `ranges`, each position exactly once.

    Ranges of one version of an object at most `gap_bytes` apart share a request, as long as it stays
    within `max_bytes`; a longer range keeps a request of its own.
    """
    order = sorted(
        (position for position, item in enumerate(ranges) if item.length > 0),
        key=lambda position: _sort_key(ranges[position]),
    )
    requests: list[Request] = []
    for position in order:
        item = ranges[position]
        end = item.start + item.length
        last = requests[-1] if requests else None
        if last is not None and _joins(last, item, end, gap_bytes, max_bytes):
            last.end = max(last.end, end)
            last.members.append(position)
        else:
            requests.append(Request(item.key, item.etag, item.start, end, [position]))
    return requests


def cut(request: Request, body: bytes | memoryview, ranges: Sequence[ByteRange]) -> list[tuple[int, bytes]]:
    """`body` of `request` cut into (position, bytes); shorter only where the object ends."""
    pieces = []
    for position in request.members:
        start = ranges[position].start - request.start
        pieces.append((position, bytes(body[start : start + ranges[position].length])))
    return pieces


def _sort_key(item: ByteRange) -> tuple[str, str, int, int]:
    return item.key, item.etag or "", item.start, item.length


def _joins(last: Request, item: ByteRange, end: int, gap_bytes: int, max_bytes: int) -> bool:
    same = (last.key, last.etag) == (item.key, item.etag)
    return same and item.start - last.end <= gap_bytes and max(end, last.end) - last.start <= max_bytes
