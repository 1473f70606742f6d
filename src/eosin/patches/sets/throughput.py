"""Decoding throughput for the log, at most once a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from eosin.observability import RunLog
from eosin.records.patchset_shard import PatchRow

_EVERY_S = 1.0


class Throughput:
    """Counts patches of one worker; `total` is of `unit` (patches, slides or shards)."""

    def __init__(
        self, log: RunLog, total: int, unit: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log, self._total, self._unit, self._clock = log, total, unit, clock
        self._start_s = self._said_s = clock()
        self._done = self._num_patches = self._num_bytes = 0

    def add(self, rows: Sequence[PatchRow], done: int | None = None) -> None:
        """Count `rows`; `done` of the unit are finished (None: as many more as there are rows)."""
        self._num_patches += len(rows)
        self._num_bytes += sum(len(row.image) for row in rows)
        self._done = self._done + len(rows) if done is None else done
        if self._done >= self._total or self._clock() - self._said_s >= _EVERY_S:
            self._said_s = self._clock()
            seconds = max(self._said_s - self._start_s, 1e-9)
            left = self._total - self._done
            self._log.progress(
                self._done, self._total, self._unit, patches=self._num_patches,
                patches_per_s=round(self._num_patches / seconds, 1),
                **({"eta_s": round(left * seconds / self._done)} if self._done else {}),
            )  # fmt: skip

    def report(self) -> None:
        """The whole, once all is done; nothing where nothing was to do."""
        if self._num_patches:
            seconds = max(self._clock() - self._start_s, 1e-9)
            self._log.event(
                "decoded", num_patches=self._num_patches, num_bytes=self._num_bytes,
                seconds=round(seconds, 2), patches_per_s=round(self._num_patches / seconds, 1),
            )  # fmt: skip
