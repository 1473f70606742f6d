"""Decoders that may crash, seen from the process that uses them, the parent: pools of their processes.

Each stands behind the same interface as the others; a crash or a hang costs one patch and not the training.
"""

import contextlib
import importlib.util
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eosin.errors import EosinError, MissingDependency, PermanentError, TransientError
from eosin.patches.decoding.child import DeviceSlab, HostSlab, InSlab, Pixels, Rest, Work
from eosin.patches.decoding.decoders import EncodedTile, TileDecoder
from eosin.patches.decoding.quarantine import DecoderDied
from eosin.patches.decoding.whole_slide import OpenSlideFile, RegionReader, SlideRegion
from eosin.patches.geometry import Box
from eosin.patches.request import PatchRequest
from eosin.slides.errors import SlideError
from eosin.slides.model import SlideHeader

if TYPE_CHECKING:
    from eosin.config.patches import PatchesConfig

START_TIMEOUT_S = 120.0
_PROGRAM = "from eosin.patches.decoding.child import main; main()"
# Signals that somebody else sent (a machine out of memory, an operator): no fault of the patch.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_TRIES_FROM_OUTSIDE = 3
# What makes the worker of each decoder in its process; tests put their own crashing ones here.
WORKERS = {
    "nvimgcodec": "eosin.patches.decoding.child:tiles_worker",
    "cucim": "eosin.patches.decoding.child:regions_worker",
    "openslide": "eosin.patches.decoding.child:regions_worker",
}
_LIBRARIES = {"nvimgcodec": ("nvidia.nvimgcodec", "nvImageCodec"), "cucim": ("cucim", "cuCIM")}


class Isolation:
    """Processes for the decoders that a reader may need; none runs before it is needed."""

    def __init__(self, config: "PatchesConfig", device: int | None = None) -> None:
        """`device`: the GPU that decodes and keeps pixels; None: they come as arrays.

        Raises `MissingDependency` where the configured decoder is absent.
        """
        self._device = device
        self._timeout_s = config.decoder_timeout_s
        self._pools: dict[str, DecoderPool] = {}
        self._lock = threading.Lock()
        if config.decoder != "cpu":
            self._pool(config.decoder)

    def tiles(self, decoder: str) -> TileDecoder:
        """Whole tiles by a library that may crash."""
        return IsolatedTiles(self._pool(decoder))

    def slides(self, decoder: str) -> OpenSlideFile:
        """Regions by a library that opens whole slides."""
        return through_pool(self._pool(decoder))

    def regions(self, decoder: str, regions: Sequence[SlideRegion]) -> list[Any]:
        """Regions of one slide together: pixels, or why there are none."""
        with self._pool(decoder).session() as session:
            return session.run(regions)

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools.values():
            pool.close()

    def _pool(self, decoder: str) -> "DecoderPool":
        with self._lock:
            if decoder not in self._pools:
                self._pools[decoder] = open_pool(decoder, timeout_s=self._timeout_s, device=self._device)
            return self._pools[decoder]


class IsolatedTiles:
    """A `TileDecoder` in processes of its own."""

    max_denominator = 1

    def __init__(self, pool: "DecoderPool") -> None:
        self._pool = pool

    def decode(self, tiles: Sequence[EncodedTile]) -> list[Pixels | SlideError]:
        """As `TileDecoder`."""
        return self._pool.run(tiles)


def open_pool(decoder: str, *, timeout_s: float, device: int | None = None) -> "DecoderPool":
    """Processes of `decoder` (on GPU `device`), none started yet.

    Raises `MissingDependency` where its library is absent.
    """
    if decoder in _LIBRARIES:
        module, name = _LIBRARIES[decoder]
        if not _is_installed(module):
            raise MissingDependency(name, "gpu")
    on_device = device if decoder != "openslide" else None
    return DecoderPool(
        decoder, WORKERS[decoder], timeout_s=timeout_s, device=on_device,
        argument=decoder if on_device is None else f"{decoder} {device}",
    )  # fmt: skip


def through_pool(pool: "DecoderPool") -> OpenSlideFile:
    """Slides through the library that `pool` holds, one process a slide that is open."""

    @contextlib.contextmanager
    def opened(path: Path, header: SlideHeader) -> Iterator[RegionReader]:
        with pool.session() as session:
            yield _Regions(session, path, header)

    return opened


class _Regions:
    def __init__(self, session: "Session", path: Path, header: SlideHeader) -> None:
        self._session, self._path, self._header = session, path, header

    def read(self, request: PatchRequest, box: Box) -> Pixels:
        (found,) = self._session.run([SlideRegion(self._path, self._header, request, box)])
        if isinstance(found, SlideError):
            raise found
        return found


class _Died(Exception):
    """The process ended, or did not answer in time; `code` as of `Popen`, None for a hang."""

    def __init__(self, code: int | None, timeout_s: float) -> None:
        self.code = code
        self.timeout_s = timeout_s
        super().__init__(self.what)

    @property
    def is_from_outside(self) -> bool:
        return self.code is not None and -self.code in _FROM_OUTSIDE

    @property
    def reason(self) -> str:
        return "decoder-hang" if self.code is None else "decoder-crash"

    @property
    def what(self) -> str:
        """SIGSEGV, `exit code 3`, `no answer in 60 s`."""
        if self.code is None:
            return f"no answer in {self.timeout_s:g} s"
        try:
            return signal.Signals(-self.code).name
        except ValueError:
            return f"exit code {self.code}"


class DecoderPool:
    """Processes of one decoder, started when needed and kept. Thread-safe.

    A batch whose process dies is decoded again item by item; what kills a fresh process on its own gets
    the error `DecoderDied`, and all else its pixels. A process that was killed from outside is replaced.
    """

    def __init__(
        self,
        name: str,
        factory: str,
        *,
        timeout_s: float,
        argument: str | None = None,
        device: int | None = None,
    ) -> None:
        """As many processes as there are threads that call.

        `factory`: `module:function` that makes the `Worker` from `argument` (None: `name`). `device`:
        the GPU on which pixels are handed over; None: as arrays.
        """
        self.name = name
        self._command = [factory, name if argument is None else argument]
        self._timeout_s = timeout_s
        self._device = device
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        # The memory of a process that died serves the next one.
        self._slabs: queue.LifoQueue[HostSlab | DeviceSlab] = queue.LifoQueue()
        self._closed = False

    def run(self, items: Sequence[Any]) -> list[Pixels | SlideError]:
        """Pixels of each item, or why it has none.

        Raises `TransientError` where processes are killed from outside again and again, and what the
        decoder itself raised for want of a library.
        """
        with self.session() as session:
            return session.run(items)

    @contextlib.contextmanager
    def session(self) -> "Iterator[Session]":
        """One process (and those that replace it) for several calls; its files are let go of at the end."""
        session = Session(self)
        try:
            yield session
        finally:
            session.end()

    def close(self) -> None:
        """End the processes that are idle."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().stop()

    def take(self) -> "_Process":
        """An idle process, or a new one."""
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return _Process(self._command, self._timeout_s, self._slab())

    def discard(self, process: "_Process") -> None:
        """End a process that does not serve any more."""
        process.stop()
        self._slabs.put(process.slab)

    def _slab(self) -> HostSlab | DeviceSlab:
        try:
            return self._slabs.get_nowait()
        except queue.Empty:
            return HostSlab() if self._device is None else DeviceSlab(self._device)

    def give_back(self, process: "_Process") -> None:
        """Keep a process for the next caller; end it where the pool is closed."""
        if self._closed:
            process.stop()
        else:
            self._idle.put(process)


class Session:
    """Calls to one process at a time."""

    def __init__(self, pool: DecoderPool) -> None:
        self._pool = pool
        self._process: _Process | None = None

    def run(self, items: Sequence[Any]) -> list[Pixels | SlideError]:
        """As `DecoderPool.run`."""
        if not items:
            return []
        try:
            return self._call(items)
        except _Died:
            return [self._alone(item) for item in items]

    def end(self) -> None:
        """Give the process back, its files closed."""
        if self._process is not None:
            self._process.rest()
            self._pool.give_back(self._process)
            self._process = None

    def _alone(self, item: Any) -> Pixels | SlideError:
        for _ in range(_TRIES_FROM_OUTSIDE):
            try:
                return self._call([item])[0]
            except _Died as death:
                if not death.is_from_outside:
                    name = self._pool.name
                    return DecoderDied(death.reason, f"{name}: {death.what}", name, death.what)
                last = death
        raise TransientError(
            f"the process of {self._pool.name} was ended by {last.what} {_TRIES_FROM_OUTSIDE} times",
            hint="the machine may be short of memory",
        )

    def _call(self, items: Sequence[Any]) -> list[Pixels | SlideError]:
        self._process = self._process or self._pool.take()
        try:
            return self._process.call(items)
        except BaseException:  # a call cut short leaves an answer behind that would be taken for the next
            self._pool.discard(self._process)
            self._process = None
            raise


class _Process:
    def __init__(self, command: Sequence[str], timeout_s: float, slab: HostSlab | DeviceSlab) -> None:
        self.slab = slab
        ours, theirs = socket.socketpair()
        self._timeout_s = timeout_s
        fds = [theirs.fileno(), *([slab.descriptor] if isinstance(slab, HostSlab) else [])]
        numbers = [str(number) for number in (fds[0], fds[-1], os.getpid())]
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *numbers, *command],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=sys.__stderr__.fileno() if sys.__stderr__ else None,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                     "OMP_NUM_THREADS": "1", "OPENCV_LOG_LEVEL": "ERROR"},
            )  # fmt: skip
        self._connection = Connection(ours.detach())
        self._stop = weakref.finalize(self, _stop, self._child, self._connection)
        self._started = False

    def call(self, items: Sequence[Any]) -> list[Pixels | SlideError]:
        """Raises `_Died`."""
        if not self._started:
            self._await_start()
        self._send(Work(items))
        return [self._pixels(answer) for answer in self._receive(self._timeout_s)]

    def _await_start(self) -> None:
        try:
            failure = self._receive(START_TIMEOUT_S)
        except _Died as death:
            if death.is_from_outside:
                raise
            raise PermanentError(f"the process of a decoder cannot start: {death.what}") from death
        if isinstance(failure, EosinError):
            raise PermanentError(f"the process of a decoder cannot start: {failure.message}")
        self._send(self.slab.handle())
        self._started = True

    def rest(self) -> None:
        with contextlib.suppress(_Died):
            self._send(Rest())

    def stop(self) -> None:
        """Kill the process and reap it."""
        self._stop()

    def _send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise self._death() from error

    def _receive(self, timeout_s: float) -> Any:
        try:
            if not self._connection.poll(timeout_s):
                raise _Died(None, timeout_s)
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._death() from error

    def _death(self) -> _Died:
        """The socket is closed, so the process is gone or about to be."""
        try:
            return _Died(self._child.wait(10.0), self._timeout_s)
        except subprocess.TimeoutExpired:
            return _Died(None, self._timeout_s)

    def _pixels(self, answer: InSlab | SlideError | Pixels) -> Pixels | SlideError:
        if not isinstance(answer, InSlab):
            return answer
        pixels: Pixels = self.slab.read(answer.offset, answer.shape)
        return pixels


def _stop(child: subprocess.Popen[bytes], connection: Connection) -> None:
    child.kill()
    child.wait()
    connection.close()


def _is_installed(module: str) -> bool:
    top = module.partition(".")[0]
    if top in sys.modules and sys.modules[top] is None:
        return False
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
