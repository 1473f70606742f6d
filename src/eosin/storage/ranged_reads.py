"""Ranged reads in batches: neighbours share a request, all requests of a batch are in flight together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from eosin.errors import TransientError
from eosin.storage import retry, s3_errors
from eosin.storage.base import ByteRange, ObjectChanged, PreconditionFailed
from eosin.storage.clients import Clients
from eosin.storage.curl_client import Answer, Get

GAP_BYTES = 48 << 10
_RANGE_NOT_SATISFIABLE = 416


@dataclass(slots=True)
class RangedGet:
    """One ranged GET of bytes [start, end) of `key`; `members` are the positions it serves."""

    key: str
    etag: str | None
    start: int
    end: int
    members: list[int] = field(default_factory=list)


def plan_requests(
    ranges: Sequence[ByteRange], *, gap_bytes: int, max_bytes: int = 16 << 20
) -> list[RangedGet]:
    """Requests that serve all non-empty `ranges`, each position exactly once.

    Ranges of one version of an object at most `gap_bytes` apart share a request, as long as it stays
    within `max_bytes`; a longer range keeps a request of its own.
    """
    order = [
        (key, etag or "", start, start + length, position)
        for position, (key, start, length, etag) in enumerate(ranges)
        if length > 0
    ]
    requests: list[RangedGet] = []
    last_key, last_etag, last = None, "", RangedGet("", None, 0, 0)
    for key, etag, start, end, position in sorted(order):
        same = key == last_key and etag == last_etag
        if same and start - last.end <= gap_bytes and max(end, last.end) - last.start <= max_bytes:
            last.end = max(last.end, end)
            last.members.append(position)
        else:
            last_key, last_etag = key, etag
            last = RangedGet(key, ranges[position].etag, start, end, [position])
            requests.append(last)
    return requests


def cut_body(
    request: RangedGet, body: bytes | memoryview, ranges: Sequence[ByteRange]
) -> list[tuple[int, bytes]]:
    """`body` of `request` cut into (position, bytes); shorter only where the object ends."""
    pieces = []
    for position in request.members:
        _, start, length, _ = ranges[position]
        pieces.append((position, bytes(body[start - request.start : start - request.start + length])))
    return pieces


class RangeReader:
    """Ranged reads of one bucket, of keys below `prefix`; errors name whole keys of the bucket."""

    def __init__(self, clients: Clients, bucket: str, prefix: str) -> None:
        self._clients, self._bucket, self._prefix = clients, bucket, prefix

    def read(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """The bytes of each range, in order; see `Store.get_ranges` for the errors."""
        requests = plan_requests(ranges, gap_bytes=GAP_BYTES)
        for request in requests:
            request.key = self._prefix + request.key
        bodies: dict[int, bytes] = {}
        if requests:
            retry.call(lambda: self._fetch_missing(requests, bodies), self._clients.settings.retry)
        results = [b""] * len(ranges)
        for number, request in enumerate(requests):
            for position, piece in cut_body(request, bodies[number], ranges):
                results[position] = piece
        return results

    def _fetch_missing(self, requests: list[RangedGet], bodies: dict[int, bytes]) -> None:
        """Fetch what `bodies` lacks. Raises the first error that no further try mends, else any."""
        missing = [number for number in range(len(requests)) if number not in bodies]
        sign = self._clients.signer(self._bucket).headers_of
        base = self._clients.bucket_url(self._bucket)
        gets = [_get(base, requests[number]) for number in missing]
        failed: TransientError | None = None
        for number, answer in zip(missing, self._clients.curl.fetch(gets, sign), strict=True):
            try:
                bodies[number] = self._body(requests[number], answer)
            except TransientError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def _body(self, request: RangedGet, answer: Answer) -> bytes:
        wanted = request.end - request.start
        if answer.trouble:
            raise s3_errors.from_curl(self._asked(request), answer.trouble, answer.reason)
        if answer.status == _RANGE_NOT_SATISFIABLE:
            return b""
        if answer.status not in (200, 206):
            raise self._refused(request, answer)
        if answer.status == 206 and len(answer.body) < wanted:
            # It reaches past the end of the object, or the answer was cut short: boto3 is told which.
            return self._read_by_boto(request)
        if len(answer.body) != wanted:
            raise s3_errors.ignored_range(self._asked(request))
        return answer.body

    def _refused(self, request: RangedGet, answer: Answer) -> Exception:
        error = s3_errors.from_status(self._asked(request), answer.code, answer.status)
        return self._translated(request, error)

    def _read_by_boto(self, request: RangedGet) -> bytes:
        pin: dict[str, Any] = {"IfMatch": quoted(request.etag)} if request.etag is not None else {}
        try:
            answer = self._clients.boto.get_object(
                Bucket=self._bucket,
                Key=request.key,
                Range=f"bytes={request.start}-{request.end - 1}",
                **pin,
            )
            body: bytes = answer["Body"].read()
            size_bytes = int(answer["ContentRange"].rpartition("/")[2])
        except Exception as error:
            if _is_past_end(error):
                return b""
            raise self._translated(request, s3_errors.from_boto(self._asked(request), error)) from error
        wanted = min(request.end, size_bytes) - request.start
        if len(body) != wanted:
            raise s3_errors.short_body(self._asked(request), wanted, len(body))
        return body

    def _asked(self, request: RangedGet) -> s3_errors.S3Request:
        return s3_errors.S3Request("read", self._bucket, request.key, self._clients.boto.meta.endpoint_url)

    @staticmethod
    def _translated(request: RangedGet, error: Exception) -> Exception:
        if isinstance(error, PreconditionFailed):
            return ObjectChanged(f"{request.key} is not the version {request.etag}")
        return error


def _get(base_url: str, request: RangedGet) -> Get:
    headers = () if request.etag is None else (f"If-Match: {quoted(request.etag)}",)
    return Get(base_url + _path_of(request.key), request.start, request.end, headers)


@lru_cache(maxsize=1024)  # the requests of a patch have one key
def _path_of(key: str) -> str:
    return quote(key, safe="/~")


def quoted(etag: str) -> str:
    """An etag as HTTP headers carry it."""
    return etag if etag.startswith(('"', "W/")) else f'"{etag}"'


def _is_past_end(error: Exception) -> bool:
    answer = getattr(error, "response", None) or {}
    return bool(answer.get("ResponseMetadata", {}).get("HTTPStatusCode") == _RANGE_NOT_SATISFIABLE)
