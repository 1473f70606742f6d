"""Memory that a decoder writes pixels to and that survives the decoder: its parent owns it."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

# A batch's pixels; what does not fit goes through the socket. On a host, untouched pages cost nothing.
SLAB_BYTES = 64 * 2**20


class Slab(Protocol):
    """Memory that two processes share."""

    def handle(self) -> Any:
        """What lets another process write here; it is pickled."""
        ...

    def read(self, offset: int, shape: tuple[int, ...]) -> Any:
        """A copy of the uint8 pixels at `offset`, where the slab lies."""
        ...


class HostSlab:
    """A file without a name, in memory where the system has such a place."""

    def __init__(self) -> None:
        folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (lives as long as the slab)
        self._file.truncate(SLAB_BYTES)
        self._map = mmap.mmap(self._file.fileno(), SLAB_BYTES)

    @property
    def descriptor(self) -> int:
        """Of the file; the child inherits it."""
        return self._file.fileno()

    def handle(self) -> None:
        """The child inherits the descriptor."""

    def read(self, offset: int, shape: tuple[int, ...]) -> Any:
        """As `Slab`: an array."""
        size = int(np.prod(shape))
        return np.frombuffer(self._map, np.uint8, size, offset).reshape(shape).copy()


class DeviceSlab:
    """A tensor on a GPU; other processes reach it by CUDA's inter-process handle. Untested."""

    def __init__(self, device: int) -> None:
        import torch

        self._memory = torch.empty(SLAB_BYTES, dtype=torch.uint8, device=f"cuda:{device}")

    def handle(self) -> Any:
        """As `Slab`."""
        import torch.multiprocessing.reductions as reductions

        return reductions.reduce_tensor(self._memory)

    def read(self, offset: int, shape: tuple[int, ...]) -> Any:
        """As `Slab`: a tensor."""
        return self._memory[offset : offset + int(np.prod(shape))].view(shape).clone()


def open_host_slab(descriptor: int) -> Any:
    """In the decoder's process: the slab as an array, uint8 [SLAB_BYTES]."""
    return np.frombuffer(mmap.mmap(descriptor, SLAB_BYTES), np.uint8)


def open_device_slab(handle: tuple[Callable[..., Any], Sequence[Any]]) -> Any:
    """In the decoder's process: the slab as a tensor, uint8 [SLAB_BYTES]."""
    import torch

    rebuild, arguments = handle
    slab = rebuild(*arguments)
    torch.cuda.set_device(slab.device)  # where libraries decode that are not told a device
    return slab
