"""A decoder's own process, the child: its loop, what makes the decoder in it, and the memory both share.

It answers one message at a time, and writes pixels to a slab of memory that its parent owns. It ends when
the parent does. What it is sent comes from the parent alone, over a socket that both inherited.
"""

import importlib
import mmap
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from eosin.errors import EosinError, describe
from eosin.patches.decoding.decoders import EncodedTile
from eosin.process import follow
from eosin.slides.errors import SlideError

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


Pixels = npt.NDArray[np.uint8]


class Worker(Protocol):
    """What a decoder does in its process."""

    def work(self, items: Sequence[Any]) -> list[Pixels | SlideError]:
        """Pixels of each item, uint8 of any shape."""
        ...

    def rest(self) -> None:
        """Let go of open files."""
        ...


class Work:
    """A message: decode these."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items


@dataclass(frozen=True)
class InSlab:
    """Where pixels lie in the slab."""

    offset: int
    shape: tuple[int, ...]


class Rest:
    """A message: nothing more of these files for now."""


def open_worker(factory: str, argument: str) -> Worker:
    """What `module:function` makes of `argument`."""
    module, _, function = factory.partition(":")
    worker: Worker = getattr(importlib.import_module(module), function)(argument)
    return worker


def main() -> None:
    """Serve until the parent goes. Arguments: two descriptors, the parent's id, the worker's factory."""
    code = _run()
    sys.stderr.flush()
    os._exit(code)  # a decoder's threads must not be waited for


def _run() -> int:
    socket_fd, slab_fd, parent_pid = (int(value) for value in sys.argv[1:4])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected; its core is no use
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to act on
    follow(parent_pid)
    connection = Connection(socket_fd)
    try:
        worker = open_worker(*sys.argv[4:6])
    except Exception as error:
        connection.send(error if isinstance(error, EosinError) else EosinError(describe(error)))
        return 1
    connection.send(None)
    handle = connection.recv()
    _serve(connection, open_host_slab(slab_fd) if handle is None else open_device_slab(handle), worker)
    return 0


def _serve(connection: Connection, slab: Any, worker: Worker) -> None:
    while True:
        try:
            message = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        if isinstance(message, Rest):
            worker.rest()
            continue
        connection.send(_answer(worker, message, slab))


def _answer(worker: Worker, message: Work, slab: Any) -> list[InSlab | SlideError | Pixels]:
    """What became of each item; pixels that the slab has no room for go through the socket."""
    answers: list[InSlab | SlideError | Pixels] = []
    offset = 0
    for result in worker.work(message.items):
        if isinstance(result, SlideError):
            answers.append(result)
        elif offset + result.nbytes > len(slab):
            answers.append(result if isinstance(result, np.ndarray) else result.cpu().numpy())
        else:
            slab[offset : offset + result.nbytes].reshape(result.shape)[:] = _like(slab, result)
            answers.append(InSlab(offset, tuple(result.shape)))
            offset += result.nbytes
    if not isinstance(slab, np.ndarray):
        sys.modules["torch"].cuda.synchronize()  # the parent reads as soon as it hears
    return answers


def _like(slab: Any, pixels: Any) -> Any:
    """`pixels` as an array or tensor, as the slab is one; a tile that the CPU decoded joins the others."""
    if isinstance(slab, np.ndarray) or not isinstance(pixels, np.ndarray):
        return pixels
    return sys.modules["torch"].from_numpy(np.ascontiguousarray(pixels)).to(slab.device)


def tiles_worker(decoder: str) -> Worker:
    """In the decoder's process: whole tiles by nvImageCodec; "nvimgcodec 0" keeps them on GPU 0."""
    from eosin.patches.decoding.decoders import NvImageCodecDecoder

    _, _, device = decoder.partition(" ")
    return TilesWorker(NvImageCodecDecoder(int(device) if device else None).decode)


def regions_worker(decoder: str) -> Worker:
    """In the decoder's process: regions of staged slides by OpenSlide or cuCIM; "cucim 0": on GPU 0."""
    from eosin.patches.decoding import whole_slide

    name, _, device = decoder.partition(" ")
    if name == "cucim":
        return whole_slide.CucimBatches(whole_slide.load_cucim(), int(device) if device else None)
    return whole_slide.RegionsWorker(whole_slide.through_openslide)


class TilesWorker:
    """A `Worker` of `decode`, which takes whole tiles."""

    def __init__(self, decode: Callable[[Sequence[EncodedTile]], list[Pixels | SlideError]]) -> None:
        self.work = decode

    def rest(self) -> None:
        """Nothing is kept open between batches."""
