"""Base of every published record: frozen JSON with a schema version, tolerant of newer fields."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from eosin.errors import PermanentError


class Record(BaseModel):
    """One JSON object in a bucket. Unknown fields are ignored, so that an older reader still reads."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

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
