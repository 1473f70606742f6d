"""The lease of a run, by which the world that started last may publish, and the run's secret.

After a false alarm of the keep-alive, or two launches of one run, two worlds train the same run and
neither knows of the other. Rank 0 of each writes its own token into one object when it starts, before
it reads a checkpoint, and looks whether the token is still there before it publishes. No lease has to be
given back, so none can keep a restart out.
"""

import os
import secrets
import socket
import uuid
from datetime import UTC, datetime

from eosin.errors import PermanentError
from eosin.layout import RunLayout
from eosin.records import LeaseRecord, load_record, publish_once
from eosin.records.base import Record
from eosin.storage import Store
from eosin.training.elastic.reports import Superseded


class Lease:
    """One world's claim to a run. Thread-safe: it holds nothing that changes."""

    def __init__(self, store: Store, mine: LeaseRecord) -> None:
        self._store = store
        self._mine = mine

    @classmethod
    def take(cls, store: Store) -> "Lease":
        """Take the run over from whoever has it: of worlds that start at once the last to write has it."""
        holder = f"{socket.gethostname()}, process {os.getpid()}"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        mine = LeaseRecord(token=uuid.uuid4().hex, holder=holder, taken_at=now)
        store.put(RunLayout.LEASE, mine.to_json())
        return cls(store, mine)

    @property
    def token(self) -> str:
        """What this world is known by, hex."""
        return self._mine.token

    def check(self) -> None:
        """Raises `Superseded`, naming the other, where another world has taken the run over since."""
        try:
            found = load_record(LeaseRecord, self._store, RunLayout.LEASE)
            if found is None:  # deleted by hand: it is ours if nobody was faster
                found = publish_once(self._store, RunLayout.LEASE, self._mine)
        except PermanentError:
            found = LeaseRecord(token="", holder="an unreadable lease", taken_at="an unknown time")
        if found.token != self._mine.token:
            raise _superseded(self._store, found)


def _superseded(store: Store, found: LeaseRecord) -> Superseded:
    return Superseded(
        f"{store.uri} is trained by another world now ({found.holder}, since {found.taken_at}); this one "
        "stops and publishes nothing more",
        hint="let the other finish, or stop it and run this again: it goes on from the last checkpoint",
    )


class SecretRecord(Record):
    """`secret.json` of a run."""

    secret: str
    """Random; whoever can read the run knows it."""


def run_secret(store: Store) -> str:
    """The run's secret, made by whoever asks first. Raises `PermanentError` where it is unreadable."""
    mine = SecretRecord(secret=secrets.token_hex(32))
    return known_secret(store) or publish_once(store, RunLayout.SECRET, mine).secret


def known_secret(store: Store) -> str | None:
    """The run's secret where one was made."""
    found = load_record(SecretRecord, store, RunLayout.SECRET)
    return None if found is None else found.secret
