"""Multipart uploads of large objects: the last request publishes the whole, none before it a part."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

PART_BYTES = 16 << 20
# Objects up to this size go in one request (S3 takes 5 GB at most, but a failure repeats all of it).
ONE_REQUEST_BYTES = 32 << 20
_MAX_PARTS = 10_000
_PARTS_AT_ONCE = 4


@dataclass(frozen=True)
class Upload:
    """Where an upload goes; `call` runs one request with retries and translated errors."""

    boto: S3Client
    bucket: str
    key: str
    call: Callable[[Callable[[], Any]], Any]

    def run(self, source: Iterable[bytes], conditions: dict[str, Any], metadata: dict[str, str]) -> Any:
        """Send the parts of `source`, in order; returns S3's answer to the last request.

        A failed upload is aborted, so that its parts are not stored (and paid for) for ever.
        """
        target: dict[str, Any] = {"Bucket": self.bucket, "Key": self.key}
        begun = self.call(lambda: self.boto.create_multipart_upload(**target, Metadata=metadata))
        target["UploadId"] = begun["UploadId"]
        try:
            parts = self._send(source, target)
            return self.call(
                lambda: self.boto.complete_multipart_upload(
                    **target, MultipartUpload={"Parts": parts}, **conditions
                )
            )
        except BaseException:
            with suppress(Exception):
                self.boto.abort_multipart_upload(**target)
            raise

    def _send(self, source: Iterable[bytes], target: dict[str, Any]) -> Any:
        def send(number: int, body: bytes) -> dict[str, Any]:
            answer = self.call(lambda: self.boto.upload_part(**target, PartNumber=number, Body=body))
            return {"PartNumber": number, "ETag": answer["ETag"]}

        parts: list[dict[str, Any]] = []
        flying: set[Future[dict[str, Any]]] = set()
        with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
            for number, body in enumerate(source, start=1):
                flying.add(pool.submit(send, number, body))
                if len(flying) == _PARTS_AT_ONCE:
                    done, flying = wait(flying, return_when=FIRST_COMPLETED)
                    parts.extend(future.result() for future in done)
            parts.extend(future.result() for future in flying)
        return sorted(parts, key=lambda part: int(part["PartNumber"]))


def parts_of_file(source: BinaryIO) -> Iterator[bytes]:
    """The bytes of an open file, from where it stands, in parts."""
    part_bytes = _part_bytes(os.fstat(source.fileno()).st_size - source.tell())
    while body := source.read(part_bytes):
        yield body


def parts_of_bytes(data: bytes) -> Iterator[bytes]:
    """`data` in parts; each is a copy, a few of which exist at a time."""
    part_bytes = _part_bytes(len(data))
    for start in range(0, len(data), part_bytes):
        yield data[start : start + part_bytes]


def _part_bytes(size_bytes: int) -> int:
    return max(PART_BYTES, -(-size_bytes // _MAX_PARTS))
