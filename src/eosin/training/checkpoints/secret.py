"""A secret of the run: whoever may read its bucket knows it, and a run begun anew gets another."""

from __future__ import annotations

import secrets

from eosin.layout import RunLayout
from eosin.records import load_record, publish_once
from eosin.records.base import Record
from eosin.storage import Store


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
