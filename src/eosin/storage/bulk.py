"""Many byte ranges at once through obstore: little CPU a request, all requests of a batch in flight."""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, groupby
from typing import TYPE_CHECKING

from eosin.storage import retry, s3_errors
from eosin.storage.base import ByteRange, ObjectChanged, PreconditionFailed
from eosin.storage.clients import MAX_CONNECTIONS, Clients
from eosin.storage.coalesce import Request, cut, plan_requests

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any, TypeVar

    import obstore.store

    T = TypeVar("T")

    Body = memoryview | bytes

GAP_BYTES = 48 << 10
# obstore sends at most ten requests of one call at a time; below two a batched call saves nothing.
_MIN_BATCH, _MAX_BATCH = 2, 10


class RangeReader:
    """Ranged reads of one bucket; keys are whole keys of the bucket."""

    def __init__(self, clients: Clients, bucket: str) -> None:
        self._clients, self._bucket = clients, bucket
        self._policy = clients.settings.retry

    def read(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """The bytes of each range, in order; see `Store.get_ranges` for the errors."""
        requests = plan_requests(ranges, gap_bytes=GAP_BYTES)
        if not requests:
            return [b""] * len(ranges)
        if _obstore_is_usable() and all(_obstore_can_name(request.key) for request in requests):
            bodies = _run(self._fetch_all(self._clients.bulk(self._bucket), requests))
        else:
            bodies = self._fetch_all_by_boto(requests)
        results = [b""] * len(ranges)
        for request, body in zip(requests, bodies, strict=True):
            for position, piece in cut(request, body, ranges):
                results[position] = piece
        return results

    async def _fetch_all(self, bulk: obstore.store.S3Store, requests: list[Request]) -> list[Body]:
        versions = [list(group) for _, group in groupby(requests, key=lambda item: (item.key, item.etag))]
        slots = asyncio.Semaphore(MAX_CONNECTIONS)
        tasks = [asyncio.ensure_future(self._fetch_version(bulk, version, slots)) for version in versions]
        try:
            return list(chain.from_iterable(await asyncio.gather(*tasks)))
        finally:
            for task in tasks:
                task.cancel()

    async def _fetch_version(
        self, bulk: obstore.store.S3Store, requests: list[Request], slots: asyncio.Semaphore
    ) -> list[Body]:
        """All requests of one version of an object.

        obstore's batched call costs a third of the CPU of single calls but can neither pin a version
        nor tell the object's size. So the last request goes alone, pinned, after the others: where it
        meets the expected version, so did they, and its answer says how long they have to be. A batch
        that fails in any way is fetched again one by one.
        """

        async def single(request: Request) -> tuple[Body, int]:
            async with slots:
                return await retry.call_async(lambda: self._fetch(bulk, request), self._policy)

        *most, last = requests
        if len(most) < _MIN_BATCH:
            return [body for body, _ in await asyncio.gather(*map(single, requests))]
        batches = [most[at : at + _MAX_BATCH] for at in range(0, len(most), _MAX_BATCH)]
        fetched = await asyncio.gather(*(self._fetch_batch(bulk, batch, slots) for batch in batches))
        last_body, size_bytes = await single(last)
        return [*await self._mended(list(chain.from_iterable(fetched)), most, size_bytes, single), last_body]

    @staticmethod
    async def _fetch_batch(
        bulk: obstore.store.S3Store, batch: list[Request], slots: asyncio.Semaphore
    ) -> list[Body | None]:
        import obstore

        starts, ends = [request.start for request in batch], [request.end for request in batch]
        async with slots:
            try:
                bodies = await obstore.get_ranges_async(
                    bulk, batch[0].key, starts=starts, ends=ends, coalesce=0
                )
            except Exception:  # what it was is found out when each is fetched alone
                return [None] * len(batch)
        return [memoryview(body) for body in bodies]

    @staticmethod
    async def _mended(
        bodies: list[Body | None],
        requests: list[Request],
        size_bytes: int,
        single: Callable[[Request], Awaitable[tuple[Body, int]]],
    ) -> list[Body]:
        async def whole(body: Body | None, request: Request) -> Body:
            if body is not None and len(body) == min(request.end, size_bytes) - request.start:
                return body
            return (await single(request))[0]

        return await asyncio.gather(*map(whole, bodies, requests))

    async def _fetch(self, bulk: obstore.store.S3Store, request: Request) -> tuple[Body, int]:
        import obstore

        options: dict[str, Any] = {"range": (request.start, request.end)}
        if request.etag is not None:
            options["if_match"] = quoted(request.etag)
        try:
            answer = await obstore.get_async(bulk, request.key, options=options)  # type: ignore[arg-type]
            body = memoryview(await answer.bytes_async())
            size_bytes = answer.meta["size"]
        except Exception as error:
            if _is_past_end(error):
                return b"", 0
            raise self._translated(request, s3_errors.from_obstore(self._asked(request), error)) from error
        return self._checked(request, body, size_bytes), size_bytes

    def _fetch_all_by_boto(self, requests: list[Request]) -> list[Body]:
        with ThreadPoolExecutor(min(16, len(requests))) as pool:
            return list(
                pool.map(
                    lambda request: retry.call(lambda: self._fetch_by_boto(request), self._policy), requests
                )
            )

    def _fetch_by_boto(self, request: Request) -> Body:
        pin: dict[str, Any] = {"IfMatch": quoted(request.etag)} if request.etag is not None else {}
        try:
            answer = self._clients.boto.get_object(
                Bucket=self._bucket,
                Key=request.key,
                Range=f"bytes={request.start}-{request.end - 1}",
                **pin,
            )
            body = memoryview(answer["Body"].read())
            size_bytes = int(answer["ContentRange"].rpartition("/")[2])
        except Exception as error:
            if _is_past_end(error):
                return b""
            raise self._translated(request, s3_errors.from_boto(self._asked(request), error)) from error
        return self._checked(request, body, size_bytes)

    def _checked(self, request: Request, body: memoryview, size_bytes: int) -> memoryview:
        wanted = min(request.end, size_bytes) - request.start
        if len(body) != wanted:
            raise s3_errors.short_body(self._asked(request), wanted, len(body))
        return body

    def _asked(self, request: Request) -> s3_errors.Request:
        return s3_errors.Request("read", self._bucket, request.key, self._clients.boto.meta.endpoint_url)

    @staticmethod
    def _translated(request: Request, error: Exception) -> Exception:
        if isinstance(error, PreconditionFailed):
            return ObjectChanged(f"{request.key} is not the version {request.etag}")
        return error


def quoted(etag: str) -> str:
    """An etag as HTTP headers carry it."""
    return etag if etag.startswith(('"', "W/")) else f'"{etag}"'


def _obstore_can_name(key: str) -> bool:
    return key.isprintable() and not any(part in ("", ".", "..") for part in key.split("/"))


def _is_past_end(error: Exception) -> bool:
    text = str(error)
    return "InvalidRange" in text or ("416" in text and "Range" in text)


_loop: asyncio.AbstractEventLoop | None = None
_loop_lock = threading.Lock()
_user_pid: int | None = None


def _obstore_is_usable() -> bool:
    """obstore's runtime does not survive a fork: a child of a process that has used it goes without."""
    global _user_pid
    if _user_pid is None:
        _user_pid = os.getpid()
    if _user_pid == os.getpid():
        return True
    warnings.warn(
        "this process was forked from one that had read byte ranges: its own reads cost several times "
        "the CPU; start workers by spawn or forkserver",
        RuntimeWarning,
        stacklevel=4,
    )
    return False


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on this process's event loop thread, from any thread."""
    global _loop
    with _loop_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="eosin-storage", daemon=True).start()
    return asyncio.run_coroutine_threadsafe(work, _loop).result()


def _forget_after_fork() -> None:
    global _loop, _loop_lock
    _loop, _loop_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
