"""Base of every published record, and three verbs: load one, publish it once, update it by compare-and-swap.

A record is frozen JSON with a schema version, tolerant of newer fields.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from eosin.errors import PermanentError, TransientError
from eosin.storage import NotFound, PreconditionFailed, Store, join_uri, put_if_absent


class RecordPart(BaseModel):
    """A part of a record: frozen, tolerant of newer fields."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Record(RecordPart):
    """One JSON object in a bucket. Unknown fields are ignored, so that an older reader still reads."""

    unreadable_hint: ClassVar[str] = "delete {source}; the step that publishes it will write it again"
    """What to do about an object whose bytes are no such record."""

    schema_version: int = 1
    """Of the form of this record; readers ignore fields that they do not know."""

    def to_json(self) -> bytes:
        """The bytes that are published: indented JSON, UTF-8."""
        return (self.model_dump_json(indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, *, source: str) -> Self:
        """Raises `PermanentError` naming `source` where the bytes are not such a record."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise PermanentError(
                f"{source} is not a {cls.__name__}: {where + ': ' if where else ''}{first['msg']}",
                hint=cls.unreadable_hint.format(source=source),
            ) from error


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

    As `update_object`, with records in place of their bytes.
    """
    standing: R | None = None

    def change_bytes(data: bytes | None) -> bytes | None:
        nonlocal standing
        found = None if data is None else kind.from_json(data, source=join_uri(store.uri, key))
        changed = change(found)
        standing = found if changed is None else changed
        return None if changed is None else changed.to_json()

    update_object(store, key, change_bytes)
    return standing


def update_object(store: Store, key: str, change: Callable[[bytes | None], bytes | None]) -> None:
    """Replace the object at `key` by what `change` makes of its bytes, by compare-and-swap.

    `change` is given the bytes as they stand (None: there is no object) and returns those that take their
    place, or None to leave them. The put holds only for the version that was read: where somebody else
    replaced it meanwhile, `change` is called again with what they wrote, so no update is lost. Raises
    `TransientError` where others keep replacing it.
    """
    for _ in range(_ATTEMPTS):
        # The etag first: an object that is replaced between the two reads fails the condition.
        etag: str | None = None
        found: bytes | None = None
        with suppress(NotFound):
            etag = store.head(key).etag
            found = store.get(key)
        changed = change(found)
        if changed is None:
            return
        try:
            store.put(key, changed, if_none_match=etag is None, if_match=etag)
            return
        except (PreconditionFailed, NotFound):
            continue
    raise TransientError(f"{join_uri(store.uri, key)} is being replaced by others", hint="run it again")
