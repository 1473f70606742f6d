"""A position that crashed or hung a decoder, and is not asked for again."""

from __future__ import annotations

from eosin.records.base import Record


class QuarantinedPatch(Record):
    """One object under the run's `quarantine/`; what a run draws depends on which there are."""

    slide: str
    slide_digest: str
    """Of the index row: a slide that was replaced is another one."""
    x_px: int
    y_px: int
    mpp: float
    decoder: str
    reason: str
    """decoder-crash or decoder-hang."""
    signal: str
    """What ended the decoder's process: SIGSEGV, exit code 3, no answer in 60 s."""
    message: str
