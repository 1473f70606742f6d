"""The file protocol of header readers."""

from __future__ import annotations

from typing import Protocol


class BinaryFile(Protocol):
    """A seekable file of bytes: an open local file, or an object read by range."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes from here; all that is left for -1."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to `offset`, as `io` counts it; returns the new place."""
        ...

    def tell(self) -> int:
        """The place, in bytes from the start."""
        ...
