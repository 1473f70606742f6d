"""Three verbs for records in a bucket: load one, publish it once, update it by compare-and-swap."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from eosin.errors import TransientError
from eosin.records.base import Record
from eosin.storage import NotFound, PreconditionFailed, Store, join_uri, put_if_absent

R = TypeVar("R", bound=Record)

_ATTEMPTS = 8


def load_record(kind: type[R], store: Store, key: str) -> R | None:
    """The record at `key`; None where no object is there.

    Raises `PermanentError` naming the object where its bytes are not such a record.
    """
    try:
        data = store.get(key)
    except NotFound:
        return None
    return kind.from_json(data, source=join_uri(store.uri, key))


def publish_once(store: Store, key: str, record: R) -> R:
    """Publish `record` unless an object is at `key` already; returns the record that stands there then.

    Of several that publish at once one wins, and all return what it wrote. Raises `PermanentError`
    where what is there is no such record.
    """
    kind = type(record)
    while not put_if_absent(store, key, record.to_json()):
        found = load_record(kind, store, key)
        if found is not None:  # None: deleted between the two requests
            return found
    return record


def update_record(kind: type[R], store: Store, key: str, change: Callable[[R | None], R | None]) -> R | None:
    """Replace the record at `key` by what `change` makes of it; returns the record that stands there then.

    `change` is given the record as it stands (None: there is none) and returns its replacement, or None
    to leave it. The put holds only for the version that was read: where somebody else replaced it
    meanwhile, `change` is called again with what they wrote, so no update is lost. Raises
    `TransientError` where others keep replacing it.
    """
    for _ in range(_ATTEMPTS):
        # The etag first: a record that is replaced between the two reads fails the condition.
        try:
            etag = store.head(key).etag
        except NotFound:
            etag = None
        found = load_record(kind, store, key) if etag is not None else None
        changed = change(found)
        if changed is None:
            return found
        try:
            store.put(key, changed.to_json(), if_none_match=etag is None, if_match=etag)
            return changed
        except PreconditionFailed:
            continue
    raise TransientError(f"{join_uri(store.uri, key)} is being replaced by others", hint="run it again")
