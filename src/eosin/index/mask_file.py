"""Tissue masks on the local disk: those of 30,000 large slides are over a gigabyte of memory."""

from __future__ import annotations

import errno
import os
import tempfile
import warnings
from dataclasses import dataclass, replace
from io import RawIOBase
from typing import cast

from eosin.index.tissue_mask import TissueMask


class MaskFile:
    """Packed masks in a file without a name in `TMPDIR`, gone as soon as its last user is.

    The kernel keeps what is read often, and gives that memory back under pressure; a read from there
    costs some 10 µs. What the disk has no room for stays in memory. Reads are thread-safe and go on
    after a fork.
    """

    def __init__(self) -> None:
        self._file: RawIOBase | None = None
        self._takes_more = True
        try:
            opened = tempfile.TemporaryFile(prefix="eosin-masks-", buffering=0)  # noqa: SIM115 (stays open)
            self._file = cast(RawIOBase, opened)
        except OSError as error:
            self._do_without(error)

    def keep(self, mask: TissueMask) -> TissueMask:
        """The same mask, its bits read from the file whenever they are asked for."""
        bits = bytes(mask.packed)
        if self._file is not None and self._takes_more:
            start = self._file.tell()
            try:
                if self._file.write(bits) != len(bits):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return replace(mask, packed=StoredBits(self, start, len(bits)))
            except OSError as error:
                self._do_without(error)
        return replace(mask, packed=bits)

    def read(self, start: int, num_bytes: int) -> bytes:
        """The bytes of one mask."""
        assert self._file is not None
        return os.pread(self._file.fileno(), num_bytes, start)

    def _do_without(self, error: OSError) -> None:
        self._takes_more = False
        warnings.warn(
            f"tissue masks stay in memory: no room for them in TMPDIR ({error.strerror or error})",
            RuntimeWarning,
            stacklevel=3,
        )


@dataclass(frozen=True, slots=True)
class StoredBits:
    """Where the bits of one mask lie."""

    file: MaskFile
    start: int
    num_bytes: int

    def __bytes__(self) -> bytes:
        return self.file.read(self.start, self.num_bytes)
