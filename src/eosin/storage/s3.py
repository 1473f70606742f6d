"""Store under a prefix of an S3 bucket, and uploads in parts."""

import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from eosin.errors import TransientError
from eosin.storage import retry, s3_errors
from eosin.storage.atomic import new_file, settle
from eosin.storage.base import ByteRange, NotFound, ObjectChanged, ObjectInfo, PreconditionFailed, Store
from eosin.storage.clients import Clients, clients_for
from eosin.storage.file import open_source
from eosin.storage.ranged_reads import RangeReader, quoted
from eosin.storage.settings import S3Settings
from eosin.storage.small_puts import SMALL_BYTES, put_small

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

    boto: "S3Client"
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


_NONCE = "eosin-put"
_DELETE_BATCH = 1000
_REPLACED_LIMIT = 8
_DOWNLOAD_PART_BYTES = 8 << 20
_DOWNLOAD_PARTS_AT_ONCE = 4


class S3Store(Store):
    """Objects under `s3://bucket/prefix`. See `Store` for the methods.

    Etags are the server's, without quotes. Holds no connection of its own: it can be pickled, shared
    among threads and used after a fork.
    """

    def __init__(self, bucket: str, prefix: str, settings: S3Settings) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.settings = settings
        self.uri = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"

    @property
    def _clients(self) -> Clients:
        return clients_for(self.settings)

    def get(self, key: str) -> bytes:
        def read() -> bytes | None:
            answer = self._clients.boto.get_object(Bucket=self.bucket, Key=self.prefix + key)
            if answer["ContentLength"] > ONE_REQUEST_BYTES:
                answer["Body"].close()
                return None
            body: bytes = answer["Body"].read()
            if len(body) != answer["ContentLength"]:
                raise s3_errors.short_body(self._asked("read", key), answer["ContentLength"], len(body))
            return body

        found = self._call("read", key, read)
        return self._in_parts(key, lambda parts: b"".join(parts))[1] if found is None else found

    def get_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        try:
            return RangeReader(self._clients, self.bucket, self.prefix).read(ranges)
        except NotFound as error:
            raise self._missing("read", str(error.args[0]).removeprefix(self.prefix), error) from None

    def head(self, key: str) -> ObjectInfo:
        def read() -> ObjectInfo:
            answer = self._clients.boto.head_object(Bucket=self.bucket, Key=self.prefix + key)
            return _info(key, answer["ContentLength"], answer["ETag"], answer["LastModified"].timestamp())

        return self._call("read", key, read)

    def put(
        self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None
    ) -> ObjectInfo:
        conditions = _conditions(if_none_match, if_match)
        if len(data) > ONE_REQUEST_BYTES:
            return self._upload(key, len(data), parts_of_bytes(data), conditions)
        nonce = secrets.token_hex(16)
        metadata: dict[str, Any] = {"Metadata": {_NONCE: nonce}} if conditions else {}

        def write(call: Callable[[Callable[[], Any]], Any]) -> Any:
            if not conditions and len(data) <= SMALL_BYTES:
                return call(lambda: put_small(self._clients, self._asked("write", key), data))
            return call(
                lambda: self._clients.boto.put_object(
                    Bucket=self.bucket, Key=self.prefix + key, Body=data, **conditions, **metadata
                )
            )

        return self._publish(key, len(data), nonce, write)

    def put_file(self, key: str, path: Path, *, if_none_match: bool = False) -> ObjectInfo:
        with open_source(path) as source:
            size_bytes = path.stat().st_size
            if size_bytes <= ONE_REQUEST_BYTES:
                return self.put(key, source.read(), if_none_match=if_none_match)
            return self._upload(key, size_bytes, parts_of_file(source), _conditions(if_none_match, None))

    def download(self, key: str, path: Path) -> ObjectInfo:
        def write(parts: Iterator[bytes]) -> None:
            with new_file(path) as (file, temporary):
                file.writelines(parts)
                settle(file)
                temporary.replace(path)

        return self._in_parts(key, write)[0]

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """A page of a thousand at a time, except from a server that is known not to keep key order."""
        pages = self._pages(prefix)
        first = next(pages)
        if _keeps_order(first):
            yield from self._items(first)
            for page in pages:
                yield from self._items(page)
        else:
            everything = [item for page in chain([first], pages) for item in self._items(page)]
            yield from sorted(everything, key=lambda item: item.key)

    def folders(self, prefix: str = "") -> Iterator[str]:
        start = len(self.prefix + prefix)
        pages = self._pages(prefix, Delimiter="/")
        yield from sorted(
            each["Prefix"][start:-1] for page in pages for each in page.get("CommonPrefixes", [])
        )

    def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _DELETE_BATCH):
            batch = list(keys[start : start + _DELETE_BATCH])
            self._call("delete", batch[0], lambda batch=batch: self._delete(batch))  # type: ignore[misc]  # mypy does not infer a lambda with a default

    def remove_unfinished(self, *, older_than_s: float) -> Sequence[str]:
        """Abort multipart uploads that killed processes have left behind; returns their keys."""
        limit_s = time.time() - older_than_s
        boto = self._clients.boto

        def uploads() -> Any:
            pages = boto.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=self.prefix
            )
            return [each for page in pages for each in page.get("Uploads", [])]

        def abort(upload: Any) -> None:
            named = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
            self._call("delete", "", lambda: boto.abort_multipart_upload(Bucket=self.bucket, **named))

        stale = [each for each in self._call("list", "", uploads) if each["Initiated"].timestamp() < limit_s]
        for each in stale:
            with suppress(NotFound):  # completed or aborted since it was listed
                abort(each)
        return [each["Key"].removeprefix(self.prefix) for each in stale]

    def _pages(self, prefix: str, **options: str) -> Iterator[Any]:
        token = options
        while True:
            page = self._call("list", prefix, lambda token=token: self._page(prefix, token))  # type: ignore[misc]  # mypy does not infer a lambda with a default
            yield page
            if not page.get("IsTruncated"):
                return
            token = {**options, "ContinuationToken": page["NextContinuationToken"]}

    def _page(self, prefix: str, token: dict[str, str]) -> Any:
        return self._clients.boto.list_objects_v2(
            Bucket=self.bucket,
            Prefix=self.prefix + prefix,
            **token,  # type: ignore[arg-type]  # boto3 types each option of its own
        )

    def _items(self, page: Any) -> Iterator[ObjectInfo]:
        for item in page.get("Contents", []):
            key = item["Key"].removeprefix(self.prefix)
            yield _info(key, item["Size"], item["ETag"], item["LastModified"].timestamp())

    def _delete(self, keys: Sequence[str]) -> None:
        objects: Any = [{"Key": self.prefix + key} for key in keys]
        answer = self._clients.boto.delete_objects(
            Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True}
        )
        for failed in answer.get("Errors", []):
            if failed.get("Code") != "NoSuchKey":
                key = failed.get("Key", "").removeprefix(self.prefix)
                raise s3_errors.from_status(self._asked("delete", key), failed.get("Code", ""), 403)

    def _in_parts(self, key: str, use: Callable[[Iterator[bytes]], T]) -> tuple[ObjectInfo, T]:
        """The object and `use` of its bytes, all of one version; begun again where it is replaced."""
        for _ in range(_REPLACED_LIMIT):
            info = self.head(key)
            with suppress(ObjectChanged):
                parts = chain.from_iterable(self.get_ranges(batch) for batch in _parts(info))
                return info, use(parts)
        raise TransientError(f"cannot read {self.uri}/{key}: it is replaced faster than it can be read")

    def _upload(
        self, key: str, size_bytes: int, parts: Iterator[bytes], conditions: dict[str, Any]
    ) -> ObjectInfo:
        nonce = secrets.token_hex(16)

        def write(call: Callable[[Callable[[], Any]], Any]) -> Any:
            upload = Upload(self._clients.boto, self.bucket, self.prefix + key, call)
            return upload.run(parts, conditions, {_NONCE: nonce})

        return self._publish(key, size_bytes, nonce, write)

    def _publish(
        self,
        key: str,
        size_bytes: int,
        nonce: str,
        write: Callable[[Callable[[Callable[[], Any]], Any]], Any],
    ) -> ObjectInfo:
        """Run `write`; where it lost although an answer had got lost, find out whether it won after all."""
        tries = 0

        def counted(work: Callable[[], Any]) -> Any:
            def attempt() -> Any:
                nonlocal tries
                tries += 1
                return work()

            return self._call("write", key, attempt)

        try:
            answer = write(counted)
        except (PreconditionFailed, NotFound) as error:
            won = self._won_before(key, nonce) if tries > 1 else None
            if won is not None:
                return won
            raise PreconditionFailed(f"{self.uri}/{key} is not the version expected") from error
        modified = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        return _info(key, size_bytes, answer["ETag"], _http_date_s(modified))

    def _won_before(self, key: str, nonce: str) -> ObjectInfo | None:
        """The object, where an earlier try of this very put made it though its answer was lost."""
        try:
            answer = self._call(
                "read", key, lambda: self._clients.boto.head_object(Bucket=self.bucket, Key=self.prefix + key)
            )
        except NotFound:
            return None
        if answer.get("Metadata", {}).get(_NONCE) != nonce:
            return None
        return _info(key, answer["ContentLength"], answer["ETag"], answer["LastModified"].timestamp())

    def _call(self, operation: str, key: str, work: Callable[[], T]) -> T:
        asked = self._asked(operation, key)

        def attempt() -> T:
            try:
                return work()
            except TransientError:
                raise
            except Exception as error:
                translated = s3_errors.from_boto(asked, error)
                raise translated from (None if translated is error else error)

        try:
            return retry.call(attempt, self.settings.retry)
        except NotFound as error:
            raise self._missing(operation, key, error) from None

    def _missing(self, operation: str, key: str, answer: NotFound) -> Exception:
        """HEAD tells a missing key and a missing bucket by the same 404: ask for the bucket."""
        if "NoSuchKey" in answer.args[1:]:
            return NotFound(key)
        asked = self._asked(operation, key)
        try:
            self._clients.boto.head_bucket(Bucket=self.bucket)
        except Exception as error:
            if isinstance(s3_errors.from_boto(asked, error), NotFound):
                return s3_errors.missing_bucket(asked)
        return NotFound(key)

    def _asked(self, operation: str, key: str) -> s3_errors.S3Request:
        return s3_errors.S3Request(
            operation, self.bucket, self.prefix + key, self._clients.boto.meta.endpoint_url
        )


def _conditions(if_none_match: bool, if_match: str | None) -> dict[str, Any]:
    conditions: dict[str, Any] = {}
    if if_none_match:
        conditions["IfNoneMatch"] = "*"
    if if_match is not None:
        conditions["IfMatch"] = quoted(if_match)
    return conditions


def _keeps_order(page: Any) -> bool:
    """SeaweedFS lists folder by folder: `a/b` before `a-b`, though `-` sorts before `/`."""
    server = page["ResponseMetadata"]["HTTPHeaders"].get("server", "")
    return not server.startswith("SeaweedFS")


def _parts(info: ObjectInfo) -> Iterator[list[ByteRange]]:
    step = _DOWNLOAD_PART_BYTES * _DOWNLOAD_PARTS_AT_ONCE
    for start in range(0, info.size_bytes, step):
        ends = min(start + step, info.size_bytes)
        yield [
            ByteRange(info.key, at, min(_DOWNLOAD_PART_BYTES, ends - at), info.etag)
            for at in range(start, ends, _DOWNLOAD_PART_BYTES)
        ]


def _info(key: str, size_bytes: int, etag: str, modified_s: float) -> ObjectInfo:
    return ObjectInfo(key, size_bytes, etag.strip('"') if etag.startswith('"') else etag, modified_s)


def _http_date_s(text: str | None) -> float:
    from email.utils import parsedate_to_datetime

    return parsedate_to_datetime(text).timestamp() if text else time.time()
