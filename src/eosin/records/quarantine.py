"""A position that crashed or hung a decoder, and is not asked for again."""

from __future__ import annotations

from eosin.records.base import Record


class QuarantinedPatch(Record):
    """One object under the run's `quarantine/`; what a run draws depends on which there are."""

    slide: str
    """Key of the slide."""
    slide_digest: str
    """Of the index row: a slide that was replaced is another one."""
    x_px: int
    """Left edge in the level-0 frame, pixels."""
    y_px: int
    """Top edge in the level-0 frame, pixels."""
    mpp: float
    """Magnification that was asked for, µm a pixel."""
    decoder: str
    """cucim, nvimgcodec or openslide."""
    reason: str
    """decoder-crash or decoder-hang."""
    signal: str
    """What ended the decoder's process: SIGSEGV, exit code 3, no answer in 60 s."""
    message: str
    """What the decoder said last."""
