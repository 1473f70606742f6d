"""Reasons why a slide, or a part of it, cannot be used: a code that is counted, a sentence that is read."""

from __future__ import annotations

from eosin.errors import PermanentError
from eosin.storage import NotFound, ObjectChanged


class SlideError(PermanentError):
    """A defect of one slide. `reason` is the status its index row carries; `message` says what was met.

    Reasons: `empty-file`, `not-a-slide`, `truncated`, `corrupt-header`, `not-tiled`,
    `unsupported-compression`, `unsupported-pixels`, `unsupported-layout`, `unsupported-format`,
    `tile-out-of-range`, `corrupt-tile`, `absent-tiles`, `not-brightfield`, `changed`, `missing`; the
    index adds `no-mpp`, `too-coarse`, `no-tissue`, `bad-contours`, `denied`, `unreadable` and `excluded`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return SlideError, (self.reason, self.message)


def absent_or_changed(key: str, error: NotFound | ObjectChanged) -> SlideError:
    """What it means for a slide that its object `key` is not the one that was listed (or indexed)."""
    if isinstance(error, NotFound):
        return SlideError("missing", f"{key} is no longer there")
    return SlideError("changed", f"{key} was replaced since it was listed")
