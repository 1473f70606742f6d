"""The record of which world of training processes may publish."""

from __future__ import annotations

from eosin.records.base import Record


class LeaseRecord(Record):
    """`lease.json` of a run: the world that started last."""

    token: str
    """Random; whoever wrote it last may publish."""
    holder: str
    """Host and process of its rank 0."""
    taken_at: str
    """ISO 8601, UTC."""
