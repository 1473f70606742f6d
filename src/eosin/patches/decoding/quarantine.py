"""Positions that crash or hang a decoder: recorded with the run, and never decoded again.

The list is part of what decides which patches a run sees. A crash may not come back (a race, a machine
that stood still); its position is replaced all the same from then on, so that a run that goes on after a
checkpoint sees what it saw before.
"""

import hashlib
import threading
from typing import TYPE_CHECKING

from eosin.layout import RunLayout
from eosin.patches.request import PatchRequest
from eosin.records.run import QuarantinedPatch
from eosin.slides.errors import SlideError
from eosin.storage import Store, join_uri

if TYPE_CHECKING:  # a decoder's process starts the sooner for it
    from eosin.index.snapshot import Snapshot

_Position = tuple[str, int, int, float]


class DecoderDied(SlideError):
    """A decoder's process died of, or hung at, one patch or tile. `signal` says what ended it."""

    def __init__(self, reason: str, message: str, decoder: str, signal: str) -> None:
        super().__init__(reason, message)
        self.decoder = decoder
        self.signal = signal

    def __reduce__(self) -> tuple[object, ...]:
        return DecoderDied, (self.reason, self.message, self.decoder, self.signal)


class Quarantine:
    """The list of one run. Thread-safe; workers of a run add to it without knowing of one another."""

    def __init__(self, store: Store | None, snapshot: "Snapshot") -> None:
        """`store`: of the run, whose list is read now; None: nothing outlives this process."""
        self._store = store
        self._snapshot = snapshot
        self._lock = threading.Lock()
        self._known: dict[_Position, QuarantinedPatch] = {}
        for info in store.list(RunLayout.QUARANTINE) if store is not None else ():
            assert store is not None
            record = QuarantinedPatch.from_json(store.get(info.key), source=join_uri(store.uri, info.key))
            self._known[_position_of(record)] = record

    def __len__(self) -> int:
        return len(self._known)

    def error_of(self, request: PatchRequest) -> SlideError | None:
        """Why the patch is not to be read, if so: the error it gave when it was."""
        if not self._known:
            return None
        record = self._known.get(self._position(request))
        if record is None:
            return None
        return DecoderDied(record.reason, record.message, record.decoder, record.signal)

    def add(self, request: PatchRequest, error: DecoderDied) -> None:
        """Record the patch; once this returns, every later worker of the run knows of it."""
        row = self._snapshot.rows[request.slide]
        record = QuarantinedPatch(
            slide=row.slide, slide_digest=row.digest, x_px=request.x_px, y_px=request.y_px, mpp=request.mpp,
            decoder=error.decoder, reason=error.reason, signal=error.signal, message=error.message,
        )  # fmt: skip
        position = _position_of(record)
        if self._store is not None:
            self._store.put(RunLayout.quarantined(_digest(position)), record.to_json())
        with self._lock:
            self._known[position] = record

    def _position(self, request: PatchRequest) -> _Position:
        return self._snapshot.rows[request.slide].digest, request.x_px, request.y_px, request.mpp


def _position_of(record: QuarantinedPatch) -> _Position:
    return record.slide_digest, record.x_px, record.y_px, record.mpp


def _digest(position: _Position) -> str:
    return hashlib.sha256(repr(position).encode()).hexdigest()[:32]
