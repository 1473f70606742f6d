"""Which world may publish for a run: the one that started last.

After a false alarm of the keep-alive, or two launches of one run, two worlds train the same run and
neither knows of the other. Rank 0 of each writes its own token into one object when it starts, before
it reads a checkpoint, and looks whether the token is still there before it publishes. No lease has to be
given back, so none can keep a restart out.
"""

from __future__ import annotations

import os
import socket
import uuid
from datetime import UTC, datetime

from eosin.errors import PermanentError, TransientError
from eosin.layout import RunLayout
from eosin.records.base import Record
from eosin.storage import NotFound, PreconditionFailed, Store, join_uri
from eosin.training.elastic.failures import Superseded

# Worlds that start at the same moment take it from each other; one of them is the last.
_MAX_ATTEMPTS = 20


class LeaseRecord(Record):
    """`lease.json` of a run: the world that started last."""

    token: str
    holder: str
    """Host and process of its rank 0."""
    taken_at: str


class Lease:
    """One world's claim to a run. Thread-safe: it holds nothing that changes."""

    def __init__(self, store: Store, mine: LeaseRecord) -> None:
        self._store = store
        self._mine = mine

    @classmethod
    def take(cls, store: Store) -> Lease:
        """Take the run over from whoever has it. Raises `TransientError` where others do so incessantly."""
        holder = f"{socket.gethostname()}, process {os.getpid()}"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        mine = LeaseRecord(token=uuid.uuid4().hex, holder=holder, taken_at=now)
        for _ in range(_MAX_ATTEMPTS):
            if _replace(store, mine):
                return cls(store, mine)
        raise TransientError(f"{_uri(store)} is taken over again and again", hint="run it again")

    @property
    def token(self) -> str:
        """What this world is known by, hex."""
        return self._mine.token

    def check(self) -> None:
        """Raises `Superseded`, naming the other, where another world has taken the run over since."""
        found = _read(self._store)
        if found is None:  # deleted by hand: it is ours if nobody was faster
            try:
                self._store.put(RunLayout.LEASE, self._mine.to_json(), if_none_match=True)
                return
            except PreconditionFailed:
                found = _read(self._store)
        if found is None or found.token != self._mine.token:
            raise _superseded(self._store, found)


def _replace(store: Store, mine: LeaseRecord) -> bool:
    """Whether `mine` is there now, in place of exactly what was there before."""
    try:
        etag = store.head(RunLayout.LEASE).etag
    except NotFound:
        etag = None
    try:
        if etag is None:
            store.put(RunLayout.LEASE, mine.to_json(), if_none_match=True)
        else:
            store.put(RunLayout.LEASE, mine.to_json(), if_match=etag)
        return True
    except (PreconditionFailed, NotFound):  # taken, or deleted, between the two requests
        return False


def _read(store: Store) -> LeaseRecord | None:
    try:
        data = store.get(RunLayout.LEASE)
    except NotFound:
        return None
    try:
        return LeaseRecord.from_json(data, source=_uri(store))
    except PermanentError:
        return LeaseRecord(token="", holder="an unreadable lease", taken_at="an unknown time")


def _superseded(store: Store, found: LeaseRecord | None) -> Superseded:
    other = f"{found.holder}, since {found.taken_at}" if found is not None else "another process"
    return Superseded(
        f"{store.uri} is trained by another world now ({other}); this one stops and publishes nothing more",
        hint="let the other finish, or stop it and run this again: it goes on from the last checkpoint",
    )


def _uri(store: Store) -> str:
    return join_uri(store.uri, RunLayout.LEASE)
