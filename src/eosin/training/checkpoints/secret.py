"""A secret of the run: whoever may read its bucket knows it, and a run begun anew gets another."""

from __future__ import annotations

import secrets

from eosin.layout import RunLayout
from eosin.records.base import Record
from eosin.storage import NotFound, PreconditionFailed, Store, join_uri


class SecretRecord(Record):
    """`secret.json` of a run."""

    secret: str


def run_secret(store: Store) -> str:
    """The run's secret, made by whoever asks first. Raises `PermanentError` where it is unreadable."""
    try:
        return _read(store)
    except NotFound:
        mine = SecretRecord(secret=secrets.token_hex(32))
    try:
        store.put(RunLayout.SECRET, mine.to_json(), if_none_match=True)
        return mine.secret
    except PreconditionFailed:
        return _read(store)


def known_secret(store: Store) -> str | None:
    """The run's secret where one was made."""
    try:
        return _read(store)
    except NotFound:
        return None


def _read(store: Store) -> str:
    source = join_uri(store.uri, RunLayout.SECRET)
    return SecretRecord.from_json(store.get(RunLayout.SECRET), source=source).secret
