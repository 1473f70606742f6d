"""The file protocol of header readers."""

from __future__ import annotations

from typing import Protocol


class BinaryFile(Protocol):
    """A seekable file of bytes: an open local file, or an object read by range."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def tell(self) -> int: ...
