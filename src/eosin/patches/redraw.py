"""Which patches were replaced and why, said without flooding the log."""

from __future__ import annotations

import threading
from collections import Counter

from eosin.index.snapshot import Snapshot
from eosin.observability import RunLog
from eosin.patches.request import PatchRequest
from eosin.slides.errors import SlideError

_EACH_UP_TO = 8
# Reasons that concern the whole slide: it will not come back during this process.
_WHOLE_SLIDE = ("changed", "missing")


class Redraws:
    """Thread-safe record of the patches that were drawn again."""

    def __init__(self, snapshot: Snapshot, log: RunLog) -> None:
        self._snapshot = snapshot
        self._log = log
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._gone: dict[int, SlideError] = {}

    def gone(self, slide: int) -> SlideError | None:
        """Why nothing of this slide can be read any more, if so."""
        return self._gone.get(slide)

    def report(self, request: PatchRequest, error: SlideError) -> None:
        """Count a failed patch; the first 8 of a slide and reason are logged, then at 16, 32, 64…"""
        slide = self._snapshot.rows[request.slide].slide
        with self._lock:
            if error.reason in _WHOLE_SLIDE:
                self._gone[request.slide] = error
            self._counts[slide, error.reason] += 1
            count = self._counts[slide, error.reason]
        if count <= _EACH_UP_TO or count & (count - 1) == 0:
            self._log.event(
                "patch-redrawn", slide=slide, x_px=request.x_px, y_px=request.y_px, mpp=request.mpp,
                step=request.step, index=request.index, attempt=request.attempt, reason=error.reason,
                message=error.message, count=count,
            )  # fmt: skip

    def summary(self) -> str:
        """The slides that failed, with their reasons."""
        with self._lock:
            return ", ".join(f"{slide} ({reason})" for slide, reason in sorted(self._counts))
